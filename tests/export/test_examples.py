"""What is handed on works where none of this is installed: the examples run with torch and edgetune out of reach."""

import re
import subprocess
import sys

import pytest
import torch

from edgetune.data.preprocess import normalise, read
from edgetune.export import export
from edgetune.model.checkpoint import find_model
from tests.project.facts import ROOT

EXAMPLE = ROOT / "examples" / "classify_onnx.py"
# An import of anything else ends the example; what numpy, Pillow and onnxruntime import themselves is theirs.
ALONE = """
import runpy, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"edgetune", "onnx", "safetensors", "torch", "torchvision", "transformers"}:
            raise ModuleNotFoundError(f"{name} is out of reach", name=name)

sys.meta_path.insert(0, Refuse())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def alone(*arguments):
    return subprocess.run(
        [sys.executable, "-c", ALONE, *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(("format", "allowed"), [("onnx", 0.002), ("onnx-int8", 0.1)])
def test_thirty_lines_classify_with_onnxruntime_alone(format, allowed, photos, tmp_path):
    path = tmp_path / "model.onnx"
    export("vit_nano_patch8_64", format, path, images=photos)
    done = alone(EXAMPLE, path, *photos)
    assert done.returncode == 0, done.stderr
    model = find_model("vit_nano_patch8_64")
    pixels = torch.stack([torch.from_numpy(read(str(photo), 64).copy()) for photo in photos])
    with torch.inference_mode():
        expected = model.load()(torch.from_numpy(normalise(pixels.numpy(), model.spec.mean, model.spec.std))).softmax(1)
    lines = done.stdout.splitlines()
    assert len(lines) == len(photos)
    for line, photo, shares in zip(lines, photos, expected, strict=True):
        name, share = re.fullmatch(rf"{re.escape(str(photo))}: (\w+) ([\d.]+)%", line).groups()
        best = model.classes.index(name)
        assert shares[best] >= shares.max() - allowed
        assert float(share) / 100 == pytest.approx(float(shares[best]), abs=allowed)


def test_the_example_is_short_and_needs_what_it_says():
    text = EXAMPLE.read_text()
    assert len(text.splitlines()) <= 30
    imported = set(re.findall(r"^(?:import|from) (\w+)", text, re.MULTILINE))
    assert imported - sys.stdlib_module_names == {"numpy", "onnxruntime", "PIL"}


@pytest.mark.parametrize("module", ["torch", "edgetune"])
def test_the_guard_refuses(module, tmp_path):
    (tmp_path / "script.py").write_text(f"import {module}\n")
    done = alone(tmp_path / "script.py")
    assert done.returncode == 1
    assert f"{module} is out of reach" in done.stderr
