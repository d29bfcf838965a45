"""A real backbone, whole, through ONNX and timm on real images."""

from pathlib import Path

import pytest
import torch

from edgetune.export import export
from edgetune.model.header import WeightsMetadata
from edgetune.model.registry import find_spec
from edgetune.model.weights import build_model, save_weights

FILE = Path(__file__).parents[3] / "shared" / "weights" / "vit_small_patch14_dinov2.saliency.safetensors"


@pytest.fixture
def weights(tmp_path):
    if not FILE.exists():
        pytest.skip(f"the real weights {FILE.name} are not beside this checkout")
    spec = find_spec("vit_small_patch14_dinov2").at(98, 10)
    path = tmp_path / "best.safetensors"
    save_weights(path, build_model(spec, FILE)[0], WeightsMetadata.of(spec, [str(digit) for digit in range(10)]))
    return path


def test_onnx(weights, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    report = export(weights, "onnx", tmp_path / "model.onnx")
    assert (report.images, report.images_from) == (16, "the bundled digits")
    assert report.max_abs_difference is not None
    assert report.max_abs_difference < 1e-4
    assert report.same_answer == 1


def test_timm(weights, tmp_path):
    timm = pytest.importorskip("timm")
    export(weights, "timm", tmp_path / "out")
    theirs = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    ours, _ = build_model(find_spec("vit_small_patch14_dinov2").at(98, 10), weights)
    images = torch.randn(1, 3, 98, 98, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(theirs(images), ours(images), rtol=0, atol=1e-5)
