import subprocess
import sys

import msgspec
import pytest
import torch

from edgetune.errors import InputError, MissingDependencyError
from edgetune.export import export
from edgetune.model.header import WeightsMetadata

pytest.importorskip("timm")

# depth is what timm has under the name: the export must not lean on anything else
CASES = [
    ("vit_nano_patch8_64", 64, 6),
    ("vit_nano_patch8_64", 48, 6),
    ("vit_tiny_patch16_224", 48, 12),
    ("deit_tiny_distilled_patch16_224", 32, 12),
    ("vit_small_patch14_reg4_dinov2", 42, 12),
    ("vit_wee_patch16_reg1_gap_256", 48, 14),
]


@pytest.mark.parametrize(("name", "image_size", "depth"), CASES)
def test_timm_opens_the_folder_and_answers_the_same(name, image_size, depth, trained, tmp_path):
    import timm

    weights, model = trained(name, image_size, depth=depth)
    report = export(weights, "timm", tmp_path / "out")
    assert "local-dir:" in report.sentence
    theirs = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    images = torch.randn(2, 3, image_size, image_size)
    with torch.no_grad():
        expected = model(images)
        torch.testing.assert_close(theirs(images), expected, rtol=0, atol=1e-5)
    data = timm.data.resolve_model_data_config(theirs)
    assert data["input_size"] == (3, image_size, image_size)
    assert (*data["mean"], *data["std"]) == (*model.spec.mean, *model.spec.std)
    assert (data["crop_pct"], data["crop_mode"], data["interpolation"]) == (1.0, "center", "bicubic")
    assert theirs.pretrained_cfg["label_names"] == [f"class {index}" for index in range(7)]


def test_timm_prepares_images_as_edgetune_does(trained, photos, tmp_path):
    import timm
    from PIL import Image

    from edgetune.data.preprocess import normalise, read

    weights, model = trained("vit_tiny_patch16_224", 48, depth=12)
    export(weights, "timm", tmp_path / "out")
    theirs = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(theirs))
    for path in photos:
        with Image.open(path) as image:
            expected = transform(image.convert("RGB"))
        ours = torch.from_numpy(normalise(read(str(path), 48)[None], model.spec.mean, model.spec.std))[0]
        # one resize of a box rounds once, resize and crop round twice: a level or two of 255
        assert (ours - expected).abs().max() < 3 / 255 / 0.5
        assert (ours - expected).abs().mean() < 0.5 / 255 / 0.5


def test_nothing_of_edgetune_is_needed(trained, tmp_path):
    weights, model = trained("vit_nano_patch8_64", 64, depth=6)
    export(weights, "timm", tmp_path / "out")
    torch.save(model(torch.ones(1, 3, 64, 64)).detach(), tmp_path / "expected.pt")
    code = """
import sys
sys.modules["edgetune"] = None
import timm, torch
torch.set_num_threads(1)
model = timm.create_model("local-dir:out", pretrained=True).eval()
difference = model(torch.ones(1, 3, 64, 64)) - torch.load("expected.pt")
assert difference.abs().max() < 1e-5
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_a_folder_with_something_else_in_it_is_left_alone(trained, tmp_path):
    weights, _ = trained("vit_nano_patch8_64", 64, depth=6)
    with pytest.raises(InputError, match="no export for timm"):
        export(weights, "timm", tmp_path)
    export(weights, "timm", tmp_path / "out")
    export(weights, "timm", tmp_path / "out")  # again is fine


def test_an_export_that_fails_leaves_the_one_before(trained, tmp_path, monkeypatch):
    weights, _ = trained("vit_nano_patch8_64", 64, depth=6)
    export(weights, "timm", tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    monkeypatch.setattr("edgetune.export.timm.json.dumps", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export(weights, "timm", tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_without_torch_the_extra_is_named(trained, tmp_path, monkeypatch):
    weights, _ = trained("vit_nano_patch8_64", 64, depth=6)
    monkeypatch.setitem(sys.modules, "edgetune.export.timm", None)
    with pytest.raises(MissingDependencyError, match=r"edgetune\[torch\]"):
        export(weights, "timm", tmp_path / "out")


def test_the_classes_of_a_checkpoint_must_be_those_of_its_weights(trained, tmp_path, monkeypatch):
    weights, _ = trained("vit_nano_patch8_64", 64, depth=6)
    whole = WeightsMetadata.parse

    def fewer(strings):
        return msgspec.structs.replace(whole(strings), classes=["a", "b"])

    monkeypatch.setattr(WeightsMetadata, "parse", staticmethod(fewer))
    with pytest.raises(InputError, match="no classifier for its 2 classes"):
        export(weights, "timm", tmp_path / "out")
