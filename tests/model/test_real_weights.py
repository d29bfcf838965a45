from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgetune.model.registry import find_spec
from edgetune.model.weights import build_model

FILE = Path(__file__).parents[3] / "shared" / "weights" / "vit_small_patch14_dinov2.saliency.safetensors"


@pytest.fixture
def file():
    if not FILE.exists():
        pytest.skip(f"the real weights {FILE.name} are not beside this checkout")
    return FILE


def test_real_weights_agree_with_timm(file, tmp_path):
    timm = pytest.importorskip("timm")
    torch.set_num_threads(1)
    # timm rounds resampled position embeddings to the file's half precision, edgetune keeps them as computed: to
    # compare the rest, timm is given the same values in single precision
    single = tmp_path / "single.safetensors"
    save_file({name: value.float() for name, value in load_file(file).items()}, single)
    overlay = {"file": str(single), "num_classes": 0, "custom_load": False}
    theirs = timm.create_model(
        "vit_small_patch14_dinov2", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0, img_size=98
    ).eval()
    ours, report = build_model(find_spec("vit_small_patch14_dinov2").at(98, 10), file)
    assert (report.naming, report.fresh_head, report.classes_in_file) == ("timm", True, None)
    assert report.resampled_positions == (37, 7)
    images = torch.randn(2, 3, 98, 98, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = theirs(images)
        assert features.std() > 0.5
        torch.testing.assert_close(ours(images), ours.head(features), rtol=0, atol=1e-5)
