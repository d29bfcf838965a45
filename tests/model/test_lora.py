import pytest
import torch

from edgetune.model.lora import add_lora, load_lora_state, lora_parameters, lora_state, merged_state
from edgetune.model.vit import VisionTransformer
from edgetune.model.weights import build_model, save_weights


@pytest.fixture
def model(small, make_model):
    return make_model(small("deit_tiny_distilled_patch16_224", 32, depth=3))


def stir(model):
    with torch.no_grad():
        for value in lora_state(model).values():
            value.normal_(std=0.05)


def test_fresh_adapters_change_nothing(model):
    images = torch.randn(2, 3, 32, 32)
    before = model(images)
    add_lora(model, 4, 8.0)
    assert torch.equal(model(images), before)


def test_only_factors_and_classifiers_train(model):
    factors = add_lora(model, 4, 8.0, [1, 2])
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trains == set(lora_state(model)) | {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}
    assert [factor.shape for factor in factors[:4]] == [(4, 192), (576, 4), (4, 192), (192, 4)]
    assert lora_parameters(model.blocks[0]) == []
    assert sum(factor.numel() for factor in lora_parameters(model.blocks[1])) == 4 * (192 + 576 + 192 + 192)
    images = torch.randn(2, 3, 32, 32)
    model(images).sum().backward()
    assert model.blocks[1].attn.qkv.weight.grad is None
    assert model.blocks[2].attn.proj.lora_b.grad.any()


def test_merging_is_the_unmerged_forward(model, tmp_path):
    add_lora(model, 4, 8.0, [0, 2])
    stir(model)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(images)
        plain = VisionTransformer(model.spec)
        plain.load_state_dict(merged_state(model))
        torch.testing.assert_close(plain(images), expected, rtol=0, atol=1e-5)
        assert (plain(images) - expected).abs().max() < (expected - expected.mean(0)).abs().max()
        save_weights(tmp_path / "merged.safetensors", model, {})
        loaded, report = build_model(model.spec, tmp_path / "merged.safetensors")
        assert report.unused == ()
        assert torch.equal(loaded(images), plain(images))


def test_merging_shares_what_has_no_adapter(model):
    add_lora(model, 4, 8.0, [0])
    state = merged_state(model)
    assert state["blocks.0.mlp.fc1.weight"].data_ptr() == model.blocks[0].mlp.fc1.weight.data_ptr()
    assert torch.equal(state["blocks.0.attn.qkv.weight"], model.blocks[0].attn.qkv.weight)


def test_factors_go_to_a_checkpoint_and_back(small, make_model, model):
    add_lora(model, 4, 8.0, seed=1)
    stir(model)
    other = make_model(model.spec)
    add_lora(other, 4, 8.0, seed=2)
    load_lora_state(other, lora_state(model))
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(other(images), model(images))
    fewer = make_model(model.spec)
    add_lora(fewer, 4, 8.0, [0])
    with pytest.raises(KeyError):
        load_lora_state(fewer, lora_state(model))


def test_the_draw_has_a_seed(small, make_model, model):
    again, other = make_model(model.spec), make_model(model.spec)
    for each, seed in ((model, 1), (again, 1), (other, 2)):
        add_lora(each, 4, 8.0, seed=seed)
    name = "blocks.0.attn.qkv.lora_a"
    assert torch.equal(lora_state(model)[name], lora_state(again)[name])
    assert not torch.equal(lora_state(model)[name], lora_state(other)[name])
