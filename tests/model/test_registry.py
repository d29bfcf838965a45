import pytest

from edgetune.errors import InputError
from edgetune.model.registry import find_spec, list_models


def test_names_and_tags():
    assert find_spec("vit_small_patch16_224").mean == (0.5, 0.5, 0.5)
    assert find_spec("vit_small_patch16_224.dino").mean == (0.485, 0.456, 0.406)
    assert find_spec("vit_small_patch16_224.dino").name == "vit_small_patch16_224"
    assert find_spec("vit_small_patch16_224").hub_id == "timm/vit_small_patch16_224.augreg_in21k_ft_in1k"


def test_unknown_names():
    with pytest.raises(InputError, match="did you mean deit_tiny_patch16_224"):
        find_spec("deit_tiny_patch16_244")
    with pytest.raises(InputError, match="deit_tiny_patch16_224"):
        find_spec("resnet50")
    with pytest.raises(InputError, match="no tag"):
        find_spec("vit_nano_patch8_64.in1k")


def test_image_sizes():
    spec = find_spec("vit_small_patch14_dinov2")
    assert spec.at(98, 10).patches == 49
    with pytest.raises(InputError, match="use 98 or 112"):
        spec.at(100)


def test_every_spec_adds_up():
    for name in list_models():
        spec = find_spec(name)
        assert spec.width % spec.heads == 0
        assert spec.tokens == spec.prefix + spec.patches
        assert len({parameter.name for parameter in spec.parameters()}) == len(list(spec.parameters()))
    assert find_spec("vit_base_patch16_224").parameter_count == 86_567_656
    assert find_spec("vit_nano_patch8_64").parameter_count == 2_721_226
