"""onnxruntime-training beside torch, in the environment that scripts/ort_training_env.sh makes. It has no torch."""

import json
import os
import subprocess
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgetune import schema

pytest.importorskip("onnx")
from benchmarks import ort_training

PYTHON = Path(os.environ.get("EDGETUNE_ORT_PYTHON", ort_training.PYTHON))

pytestmark = pytest.mark.skipif(
    not PYTHON.exists(),
    reason="no environment with onnxruntime-training: make it with scripts/ort_training_env.sh (or name its Python in"
    " EDGETUNE_ORT_PYTHON)",
)


def command(*arguments):
    return subprocess.run(
        [str(PYTHON), "-m", "edgetune", "export", *map(str, arguments), "--format", "ort-training"],
        env={**os.environ, "PYTHONPATH": str(ort_training.ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("method", ["full", "last-2", "head", "edgetune"])
def test_twenty_steps_as_torch_takes_them(method, tmp_path):
    plan = ort_training.prepare(
        tmp_path, model="vit_nano_patch8_64", method=method, lr=5e-4, image_size=None, batch=8, steps=20
    )
    found = ort_training.with_ort(PYTHON, tmp_path)
    expected = ort_training.with_torch(plan, tmp_path)
    assert len(expected) == 20
    np.testing.assert_allclose(found["losses"][:10], expected[:10], rtol=0, atol=2e-6)
    # roundings grow from step to step where every weight trains; how far depends on torch's threads
    np.testing.assert_allclose(found["losses"], expected, rtol=0, atol=5e-5)
    manifest = schema.load(tmp_path / "artifacts" / "edgetune.json", schema.OrtTraining)
    assert sorted(found["changed"]) == sorted(manifest.trained)
    assert manifest.classes == plan.data.classes
    assert set(manifest.files) == {"training_model.onnx", "eval_model.onnx", "optimizer_model.onnx", "checkpoint"}


def test_bad_input_writes_nothing_and_a_former_export_stays(tmp_path):
    plan = ort_training.prepare(
        tmp_path, model="vit_nano_patch8_64", method="head", lr=5e-4, image_size=None, batch=8, steps=1
    )
    out = tmp_path / "artifacts"
    assert command(tmp_path / "run", "--out", out).returncode == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    schema.save(msgspec.structs.replace(plan, optimizer="sgd"), tmp_path / "run" / "plan.json")
    for place in (out, tmp_path / "new"):
        done = command(tmp_path / "run", "--out", place)
        assert done.returncode == 2
        assert "optimizer sgd" in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    schema.save(plan, tmp_path / "run" / "plan.json")
    weights = tmp_path / "run" / "best.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    done = command(tmp_path / "run", "--out", tmp_path / "new")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert not (tmp_path / "new").exists()
    assert not list(tmp_path.glob(".*"))
    assert json.loads((out / "edgetune.json").read_text())["model"] == "vit_nano_patch8_64"
