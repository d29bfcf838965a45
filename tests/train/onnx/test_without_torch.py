"""The whole road without torch: profile, plan, fit, a kill, evaluate, predict; in a process that can't import it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("onnxruntime")

BLOCKED = """
import sys

BLOCKED = sys.argv.pop(1).split(",")

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NoTorch())
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name.split(".")[0] in BLOCKED else find(name, *rest)
sys.argv = ["edgetune", *sys.argv[1:]]
from edgetune.cli import main
try:
    main()
finally:
    assert "torch" not in sys.modules
"""


TORCH = "torch,torchvision,timm,transformers"


@pytest.fixture
def started(tmp_path):
    def start(*arguments, blocked=TORCH):
        environment = {"PATH": "/usr/bin:/bin", "XDG_CACHE_HOME": str(tmp_path / "cache"), "COLUMNS": "200"}
        line = [sys.executable, "-c", BLOCKED, blocked, *map(str, arguments)]
        return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)

    return start


@pytest.fixture
def command(started):
    def run(*arguments, code=0, blocked=TORCH):
        done = started(*arguments, blocked=blocked)
        output, errors = done.communicate()
        assert done.returncode == code, errors + output
        return output + errors

    return run


def test_profile_plan_fit_evaluate_predict(command, photos_folder, tmp_path):
    model = ("--model", "vit_nano_patch8_64", "--batch-size", 8, "--threads", 1)
    command("profile", "--quick", "--out", tmp_path / "profile.json")
    asked = ("--profile", tmp_path / "profile.json", "--method", "last-2", "--json")
    planned = json.loads(command("plan", photos_folder, *model, *asked))
    assert planned["predicted"]["memory"]["runtime"] < 150e6  # measured: nothing near torch's
    assert planned["engine"] == "onnx"
    assert planned["trainer"] == "lean"
    run = tmp_path / "run"
    command("fit", photos_folder, *model, "--method", "edgetune", "--epochs", 2, "--out", run, "--quiet")
    result = json.loads((run / "result.json").read_text())
    assert result["stopped_by"] == "epochs"
    assert 0 < result["memory"]["measured_peak_bytes"] < 400e6
    assert "report.html" in {path.name for path in run.iterdir()}
    evaluated = json.loads(command("evaluate", run, photos_folder, "--json"))
    assert evaluated["accuracy"] == pytest.approx(result["accuracy"]["best"])
    image = next(photos_folder.rglob("*.png"))
    assert len(json.loads(command("predict", run, image, "--json"))["images"]) == 1
    assert len(list((tmp_path / "cache" / "edgetune" / "graphs").iterdir())) == 2  # to train, and to answer
    said = command("fit", photos_folder, *model, "--engine", "torch", "--out", tmp_path / "other", code=2)
    assert "edgetune[torch]" in said


def test_a_killed_run_is_gone_on_with(command, started, photos_folder, tmp_path):
    run, metrics = tmp_path / "run", tmp_path / "run" / "metrics.jsonl"
    words = ("--model", "vit_nano_patch8_64", "--image-size", 32, "--batch-size", 6, "--threads", 1, "--epochs", 30)
    process = started(
        "fit", photos_folder, *words, "--evaluate-every", 30, "--out", run, "--save-every", "1s", "--quiet"
    )
    state = run / "state" / "state.safetensors"
    while process.poll() is None and not (state.exists() and metrics.exists() and metrics.read_text().count("\n") > 8):
        time.sleep(0.01)
    process.kill()
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors
    assert not (run / "result.json").exists()
    command("fit", "--resume", "--out", run, "--quiet")
    assert json.loads((run / "result.json").read_text())["stopped_by"] == "epochs"
    steps = [row for row in map(json.loads, metrics.read_text().splitlines()) if row["kind"] == "step"]
    assert [row["step"] for row in steps] == list(range(1, len(steps) + 1))


@pytest.mark.parametrize("cap", [("--time", "6s"), ("--energy", "40J", "--power", 10)])
def test_caps_hold(cap, command, photos_folder, tmp_path):
    run = tmp_path / "run"
    words = ("--model", "vit_nano_patch8_64", "--batch-size", 8, "--threads", 1, "--epochs", 100_000)
    command("fit", photos_folder, *words, *cap, "--out", run, "--quiet", code=4)
    result = json.loads((run / "result.json").read_text())
    assert result["stopped_by"] == cap[0].strip("-")
    assert result["accuracy"]["last"] is not None
    assert (run / "best.safetensors").exists()
    assert result["time"]["total_s"] <= 6
    assert cap[0] == "--time" or result["energy"]["total_j"] <= 40


def test_an_export_is_trained_with(command, photos_folder, tmp_path):
    model = ("--model", "vit_nano_patch8_64", "--batch-size", 8, "--threads", 1, "--epochs", 1)
    command("plan", photos_folder, *model, "--method", "last-1", "--out", tmp_path / "plan.json")
    command("export", tmp_path / "plan.json", "--format", "train-onnx", "--out", tmp_path / "graphs")
    run = tmp_path / "run"
    command("fit", photos_folder, "--graphs", tmp_path / "graphs", "--out", run, "--quiet", blocked=f"{TORCH},onnx")
    assert json.loads((run / "result.json").read_text())["stopped_by"] == "epochs"
    (tmp_path / "graphs" / "graphs" / "mlp.onnx").write_bytes(b"")
    said = command("fit", photos_folder, "--graphs", tmp_path / "graphs", "--out", tmp_path / "second", code=2)
    assert "mlp.onnx is not what manifest.json says" in said
    assert not (tmp_path / "second").exists()
