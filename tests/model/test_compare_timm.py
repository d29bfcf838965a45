"""The same weights, the same images, the same logits as timm; and every registered fact as timm has it."""

import pytest
import torch

from edgetune.model.registry import BUNDLED_MODEL, find_spec, list_models
from edgetune.model.vit import VisionTransformer
from edgetune.model.weights import build_model

timm = pytest.importorskip("timm")

NAMES = [name for name in list_models() if name != BUNDLED_MODEL]
# name, image size of the weights, other settings of timm's factory
CASES = [
    ("vit_tiny_patch16_224", 64),
    ("vit_small_patch32_224", 96),
    ("vit_small_patch8_224", 32),
    ("vit_base_patch16_224", 48),
    ("vit_large_patch32_384", 64),
    ("deit_tiny_patch16_224", 64),
    ("deit_tiny_distilled_patch16_224", 64),
    ("deit_small_distilled_patch16_224", 48),
    ("deit3_small_patch16_224", 64),
    ("vit_small_patch14_dinov2", 56),
    ("vit_small_patch14_reg4_dinov2", 56),
    ("vit_base_patch14_reg4_dinov2", 42),
    ("vit_wee_patch16_reg1_gap_256", 64),
    ("vit_little_patch16_reg4_gap_256", 48),
]


@pytest.mark.parametrize("name", NAMES)
def test_every_registered_architecture_has_timms_tensors_and_settings(name):
    spec = find_spec(name)
    with torch.device("meta"):
        theirs = timm.create_model(name, num_classes=spec.classes)
        ours = VisionTransformer(spec)
    expected = {key: tuple(value.shape) for key, value in theirs.state_dict().items()}
    assert {parameter.name: parameter.shape for parameter in spec.parameters()} == expected
    assert {key: tuple(value.shape) for key, value in ours.state_dict().items()} == expected
    assert spec.heads == theirs.blocks[0].attn.num_heads
    assert spec.norm_eps == theirs.blocks[0].norm1.eps == getattr(theirs, spec.final_norm).eps
    assert spec.pool == theirs.global_pool
    assert spec.prefix == theirs.num_prefix_tokens
    if spec.layer_scale:
        assert spec.layer_scale_init == theirs.pretrained_cfg.get("init_values", spec.layer_scale_init)
    config = timm.models.get_pretrained_cfg(name)
    assert spec.hub_id == f"timm/{name}.{config.tag}"
    assert (spec.mean, spec.std, spec.image_size) == (config.mean, config.std, config.input_size[1])


def test_every_published_tag_is_normalised_as_timm_says():
    for name in NAMES:
        tags = timm.models.list_pretrained(f"{name}.*")
        assert tags
        for tagged in tags:
            config = timm.models.get_pretrained_cfg(tagged)
            spec = find_spec(tagged)
            assert (spec.hub_id, spec.mean, spec.std) == (f"timm/{tagged}", config.mean, config.std)


@pytest.mark.parametrize(("name", "image_size"), CASES)
def test_logits(name, image_size, small, scatter, save_state):
    theirs = scatter(timm.create_model(name, depth=2, img_size=image_size, num_classes=7))
    ours, report = build_model(small(name, image_size), save_state(theirs))
    assert (report.naming, report.classes_in_file, report.fresh_head, report.unused) == ("timm", 7, False, ())
    images = torch.randn(2, 3, image_size, image_size)
    with torch.no_grad():
        expected = theirs(images)
        torch.testing.assert_close(ours(images), expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.1


@pytest.mark.parametrize(
    ("name", "stored", "wanted"),
    [
        ("vit_tiny_patch16_224", 64, 96),
        ("deit_tiny_distilled_patch16_224", 96, 48),
        ("vit_small_patch14_dinov2", 84, 56),
        ("vit_small_patch14_reg4_dinov2", 56, 70),
        ("deit3_small_patch16_224", 64, 80),
    ],
)
def test_logits_at_another_image_size(name, stored, wanted, small, scatter, save_state):
    source = scatter(timm.create_model(name, depth=2, img_size=stored, num_classes=7))
    file = save_state(source)
    settings = {"depth": 2, "img_size": wanted, "num_classes": 7}
    overlay = {"file": str(file), "num_classes": 7, "custom_load": False}
    theirs = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **settings).eval()
    ours, report = build_model(small(name, wanted), file)
    patch = ours.spec.patch_size
    assert report.resampled_positions == (stored // patch, wanted // patch)
    images = torch.randn(2, 3, wanted, wanted)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=0, atol=1e-5)


def test_bundled_architecture_is_a_timm_model_too(scatter, save_state):
    settings = {"embed_dim": 192, "depth": 6, "num_heads": 3, "patch_size": 8, "img_size": 64, "num_classes": 10}
    theirs = scatter(timm.create_model("vit_tiny_patch16_224", **settings))
    ours, _ = build_model(find_spec(BUNDLED_MODEL), save_state(theirs))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=0, atol=1e-5)


def test_gradients(small, scatter, save_state):
    theirs = scatter(timm.create_model("vit_small_patch14_reg4_dinov2", depth=2, img_size=42, num_classes=7))
    ours, _ = build_model(small("vit_small_patch14_reg4_dinov2", 42), save_state(theirs))
    images = torch.randn(2, 3, 42, 42)
    for model in (ours, theirs):
        model(images).logsumexp(1).sum().backward()
    expected = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-5)
