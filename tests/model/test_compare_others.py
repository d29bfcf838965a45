"""The same weights, the same images, the same logits as torchvision and transformers."""

from typing import Any

import pytest
import torch

from edgetune.model.spec import ViTSpec
from edgetune.model.weights import build_model

COMMON = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 64, "num_labels": 7}
# transformers' ViT and DeiT default to an epsilon of 1e-12; timm trains and runs the same weights with 1e-6
VIT = COMMON | {"intermediate_size": 256, "patch_size": 16, "layer_norm_eps": 1e-6}
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
DINO_IMAGES = IMAGES[:, :, :56, :56]


def spec(**other):
    settings: dict[str, Any] = {
        "name": "small",
        "width": 64,
        "depth": 2,
        "heads": 2,
        "patch_size": 16,
        "image_size": 64,
        "classes": 7,
    }
    return ViTSpec(**(settings | other))


def agrees(ours, expected):
    assert expected.std() > 0.05
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


@pytest.fixture
def transformers():
    module = pytest.importorskip("transformers")
    module.logging.set_verbosity_error()
    return module


def both_namings(model, save_state, tmp_path):
    """A model's names in memory, and as `save_pretrained` writes them; transformers 5 made them two."""
    folder = tmp_path / "pretrained"
    model.save_pretrained(folder)
    return [save_state(model), folder / "model.safetensors"]


@pytest.mark.parametrize("patch_size", [16, 8])
def test_torchvision(patch_size, scatter, save_state):
    models = pytest.importorskip("torchvision.models")
    theirs = scatter(
        models.VisionTransformer(
            image_size=64, patch_size=patch_size, num_layers=2, num_heads=2, hidden_dim=64, mlp_dim=256, num_classes=7
        )
    )
    ours, report = build_model(spec(patch_size=patch_size), save_state(theirs))
    assert (report.naming, report.fresh_head, report.unused) == ("torchvision", False, ())
    with torch.no_grad():
        agrees(ours(IMAGES), theirs(IMAGES))


def test_torchvision_names_before_0_12(scatter, tmp_path):
    from safetensors.torch import save_file

    models = pytest.importorskip("torchvision.models")
    theirs = scatter(
        models.VisionTransformer(
            image_size=64, patch_size=16, num_layers=2, num_heads=2, hidden_dim=64, mlp_dim=256, num_classes=7
        )
    )
    state = {
        name.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): value.clone()
        for name, value in theirs.state_dict().items()
    }
    save_file(state, tmp_path / "old.safetensors")
    ours, _ = build_model(spec(), tmp_path / "old.safetensors")
    with torch.no_grad():
        agrees(ours(IMAGES), theirs(IMAGES))


def test_transformers_vit(transformers, scatter, save_state, tmp_path):
    theirs = scatter(transformers.ViTForImageClassification(transformers.ViTConfig(**VIT)))
    for file in both_namings(theirs, save_state, tmp_path):
        ours, report = build_model(spec(), file)
        assert (report.naming, report.classes_in_file, report.fresh_head) == ("transformers", 7, False)
        with torch.no_grad():
            agrees(ours(IMAGES), theirs(IMAGES).logits)


def test_transformers_vit_without_prefix_or_classifier(transformers, scatter, save_state, tmp_path):
    theirs = scatter(transformers.ViTModel(transformers.ViTConfig(**VIT)))
    for file in both_namings(theirs, save_state, tmp_path):
        ours, report = build_model(spec(), file)
        assert (report.classes_in_file, report.fresh_head) == (None, True)
        assert all("pooler" in name for name in report.unused)
        with torch.no_grad():
            agrees(ours(IMAGES), ours.head(theirs(IMAGES).last_hidden_state[:, 0]))


def test_transformers_deit(transformers, scatter, save_state, tmp_path):
    config = transformers.DeiTConfig(**VIT)
    theirs = scatter(transformers.DeiTForImageClassificationWithTeacher(config))
    for file in both_namings(theirs, save_state, tmp_path):
        ours, report = build_model(spec(distillation_token=True), file)
        assert report.fresh_head is False
        with torch.no_grad():
            agrees(ours(IMAGES), theirs(IMAGES).logits)


def test_transformers_deit_with_one_classifier_starts_both_afresh(transformers, scatter, save_state, tmp_path):
    theirs = scatter(transformers.DeiTForImageClassification(transformers.DeiTConfig(**VIT)))
    for file in both_namings(theirs, save_state, tmp_path):
        ours, report = build_model(spec(distillation_token=True), file)
        assert report.fresh_head is True
        with torch.no_grad():
            tokens = theirs.deit(IMAGES).last_hidden_state
            agrees(ours(IMAGES), (ours.head(tokens[:, 0]) + ours.head_dist(tokens[:, 1])) / 2)


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("whole", [True, False])
def test_transformers_dinov2(registers, whole, transformers, scatter, save_state, tmp_path):
    settings = COMMON | {"patch_size": 14, "image_size": 56, "mlp_ratio": 4}
    if registers:
        config = transformers.Dinov2WithRegistersConfig(**settings, num_register_tokens=registers)
        kind = "Dinov2WithRegisters"
    else:
        config, kind = transformers.Dinov2Config(**settings), "Dinov2"
    theirs = scatter(getattr(transformers, f"{kind}{'ForImageClassification' if whole else 'Model'}")(config))
    ours_spec = spec(
        patch_size=14, image_size=56, layer_scale=True, register_tokens=registers, position_on_prefix=not registers
    )
    for file in both_namings(theirs, save_state, tmp_path):
        ours, report = build_model(ours_spec, file)
        # its classifier reads the class token beside the mean patch: not this architecture's
        assert (report.naming, report.classes_in_file, report.fresh_head) == ("transformers", None, True)
        backbone = theirs
        if whole:
            backbone = theirs.dinov2_with_registers if registers else theirs.dinov2
        with torch.no_grad():
            agrees(ours(DINO_IMAGES), ours.head(backbone(DINO_IMAGES).last_hidden_state[:, 0]))
