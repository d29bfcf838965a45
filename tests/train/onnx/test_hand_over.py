"""A run of the command line that one engine begins, a signal ends, and the other engine finishes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("torch")

EPOCHS, STEPS = 40, 4  # in each: 24 photos, 6 at a time
WORDS = ["--model", "vit_nano_patch8_64", "--image-size", "32", "--batch-size", "6", "--threads", "1", "--no-augment"]
WORDS += ["--method", "last-2", "--lever", "trainer=lean", "--epochs", str(EPOCHS), "--evaluate-every", str(EPOCHS)]


@pytest.fixture
def begin(tmp_path: Path) -> Any:
    """Start the command in a process of its own, whose graphs are cached in this test's folder."""

    def start(*words: str | Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "edgetune", *map(str, words), "--quiet"],
            env=os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")},
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def steps_of(run: Path) -> list[dict[str, Any]]:
    path = run / "metrics.jsonl"
    rows = path.read_text().splitlines() if path.exists() else []
    return [row for row in map(json.loads, rows[:-1]) if row["kind"] == "step"]  # the last one may be half a line


def end(process: subprocess.Popen[str], code: int) -> None:
    _, errors = process.communicate(timeout=120)
    assert process.returncode == code, errors


@pytest.fixture(scope="module")
def uninterrupted(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of all steps, by the lean trainer."""
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    subprocess.run([sys.executable, "-m", "edgetune", "fit", photos, *WORDS, "--quiet", "--out", run], check=True)
    return [row["loss"] for row in steps_of(run)]


@pytest.mark.parametrize(("first", "second"), [("torch", "onnx"), ("onnx", "torch")])
def test_a_run_changes_hands_half_way(
    begin: Any, uninterrupted: list[float], photos: Path, tmp_path: Path, first: str, second: str
) -> None:
    run = tmp_path / "run"
    process = begin("fit", photos, *WORDS, "--engine", first, "--out", run)
    waited = time.monotonic() + 60
    while len(steps_of(run)) < 10 and process.poll() is None and time.monotonic() < waited:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    end(process, 130)
    stopped = len(steps_of(run))
    assert 10 <= stopped < EPOCHS * STEPS - 1
    end(begin("fit", "--resume", "--engine", second, "--out", run), 0)
    result = json.loads((run / "result.json").read_text())
    assert result["stopped_by"] == "epochs"
    assert json.loads((run / "plan.json").read_text())["engine"] == second
    rows = steps_of(run)
    assert [row["step"] for row in rows] == list(range(rows[0]["step"], rows[0]["step"] + len(rows)))
    assert [row["loss"] for row in rows] == pytest.approx(uninterrupted, abs=2e-3)
