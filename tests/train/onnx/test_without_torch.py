"""The whole road without torch: plan, fit, an interruption, evaluate, predict; in a process that can't import it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytest.importorskip("onnxruntime")

BLOCKED = """
import sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "timm", "transformers"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NoTorch())
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name.split(".")[0] == "torch" else find(name, *rest)
sys.argv = ["edgetune", *sys.argv[1:]]
from edgetune.cli import main
try:
    main()
finally:
    assert "torch" not in sys.modules
"""


@pytest.fixture
def command(tmp_path):
    def run(*arguments, code=0):
        environment = {"PATH": "/usr/bin:/bin", "XDG_CACHE_HOME": str(tmp_path / "cache"), "COLUMNS": "200"}
        line = [sys.executable, "-c", BLOCKED, *map(str, arguments)]
        done = subprocess.run(line, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == code, done.stderr + done.stdout
        return done.stdout + done.stderr

    return run


def test_plan_fit_resume_evaluate_predict(command, photos_folder, tmp_path):
    model = ("--model", "vit_nano_patch8_64", "--batch-size", 8, "--threads", 1)
    planned = json.loads(command("plan", photos_folder, *model, "--method", "last-2", "--json"))
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


def test_an_export_is_trained_with(command, photos_folder, tmp_path):
    model = ("--model", "vit_nano_patch8_64", "--batch-size", 8, "--threads", 1, "--epochs", 1)
    command("plan", photos_folder, *model, "--method", "last-1", "--out", tmp_path / "plan.json")
    command("export", tmp_path / "plan.json", "--format", "train-onnx", "--out", tmp_path / "graphs")
    run = tmp_path / "run"
    command("fit", photos_folder, "--graphs", tmp_path / "graphs", "--out", run, "--quiet")
    assert json.loads((run / "result.json").read_text())["stopped_by"] == "epochs"
    (tmp_path / "graphs" / "graphs" / "mlp.onnx").write_bytes(b"")
    said = command("fit", photos_folder, "--graphs", tmp_path / "graphs", "--out", tmp_path / "second", code=2)
    assert "mlp.onnx is not what manifest.json says" in said
    assert not (tmp_path / "second").exists()
