from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune.errors import InputError
from edgetune.model.header import Header, WeightsMetadata
from edgetune.model.names import detect, match, timm_name
from edgetune.model.registry import find_spec, list_models


def header(shapes, **metadata):
    return Header(Path("weights.safetensors"), dict(shapes), dict.fromkeys(shapes, "F32"), metadata)


@pytest.mark.parametrize("prefix", ["", "model.", "module.", "backbone.vit."])
@pytest.mark.parametrize("name", list_models())
def test_every_architecture_in_timm_names_is_found_under_any_prefix(name, prefix):
    spec = find_spec(name)
    shapes = {prefix + parameter.name: parameter.shape for parameter in spec.parameters()}
    found = match(header(shapes), spec)
    assert found.naming == "timm"
    assert found.sources == {parameter.name: (prefix + parameter.name,) for parameter in spec.parameters()}
    assert (found.classes, found.unused) == (spec.classes, ())
    assert found.positions == (spec.prefix_positions, spec.grid)


def test_two_architectures_of_the_registry_never_pass_for_one_another():
    for name in list_models():
        shapes = {parameter.name: parameter.shape for parameter in find_spec(name).parameters()}
        for other_name in list_models():
            other = find_spec(other_name)
            try:
                match(header(shapes), other)
            except InputError:
                continue
            # the same tensors up to image size, classes and what shapes can't show
            mine = {parameter.name.split(".")[0] for parameter in find_spec(name).parameters()}
            theirs = {parameter.name.split(".")[0] for parameter in other.parameters()}
            assert mine == theirs
            assert (find_spec(name).width, find_spec(name).patch_size) == (other.width, other.patch_size)


def test_the_released_dinov2_names():
    spec = find_spec("vit_small_patch14_reg4_dinov2")
    shapes = {parameter.name: parameter.shape for parameter in spec.parameters() if "head" not in parameter.name}
    shapes["register_tokens"] = shapes.pop("reg_token")
    shapes["mask_token"] = (1, spec.width)
    shapes["pos_embed"] = (1, 1 + spec.patches, spec.width)
    found = match(header(shapes), spec)
    assert found.sources["reg_token"] == ("register_tokens",)
    assert found.unused == ("mask_token",)
    assert found.positions == (1, 37)
    assert found.classes is None


def test_query_key_and_value_are_joined_in_order():
    assert timm_name("encoder.layer.3.attention.attention.query.weight", "transformers") == "blocks.3.attn.q.weight"
    assert timm_name("layers.11.attention.v_proj.bias", "transformers") == "blocks.11.attn.v.bias"
    assert timm_name("encoder.layers.encoder_layer_7.mlp.3.bias", "torchvision") == "blocks.7.mlp.fc2.bias"


@given(st.dictionaries(st.text(max_size=40), st.lists(st.integers(0, 9), max_size=4).map(tuple), max_size=8))
def test_any_names_are_either_a_vit_or_one_sentence(shapes):
    spec = find_spec("vit_tiny_patch16_224")
    with pytest.raises(InputError):
        match(header(shapes), spec)
    detect(shapes)


TENSORS = list(find_spec("vit_tiny_patch16_224").parameters())


@given(
    st.sampled_from(TENSORS),
    st.one_of(st.none(), st.lists(st.integers(0, 400), max_size=5).map(tuple)),
    st.sampled_from(["F32", "F16", "I8", "BOOL"]),
)
def test_one_wrong_tensor_is_one_sentence_or_a_fresh_classifier(tensor, shape, kind):
    spec = find_spec("vit_tiny_patch16_224")
    shapes = {parameter.name: parameter.shape for parameter in TENSORS}
    types = dict.fromkeys(shapes, "F32") | {tensor.name: kind}
    if shape is None:
        del shapes[tensor.name], types[tensor.name]
    else:
        shapes[tensor.name] = shape
    try:
        found = match(Header(Path("weights.safetensors"), shapes, types, {}), spec)
    except InputError:
        pass  # anything else would be a defect
    else:
        assert set(found.sources) | {"head.weight", "head.bias"} == {parameter.name for parameter in TENSORS}


@given(st.dictionaries(st.one_of(st.sampled_from(["model", "classes", "mean", "image_size"]), st.text()), st.text()))
def test_any_metadata_parses(strings):
    metadata = WeightsMetadata.parse(strings)
    assert WeightsMetadata.parse(metadata.strings()) == metadata
