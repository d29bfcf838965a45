"""The training forward pass: same logits and gradients as the plain model, and nothing kept where nothing trains."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from edgetune.alast import Controller
from edgetune.model.spec import ViTSpec
from edgetune.model.vit import VisionTransformer, initialise
from edgetune.train.forward import training_forward

SPEC = ViTSpec(name="mini", width=32, depth=4, heads=2, patch_size=8, image_size=32, classes=5, layer_scale=True)


@pytest.fixture
def model() -> VisionTransformer:
    torch.manual_seed(0)
    model = VisionTransformer(SPEC).double()
    initialise(model)
    for name, parameter in model.named_parameters():
        if "gamma" in name:
            torch.nn.init.constant_(parameter, 0.5)
    return model


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, 3, 32, 32, generator=generator, dtype=torch.float64), torch.tensor([0, 3, 4])


def gradients(model: VisionTransformer, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("recompute", [False, True])
def test_everything_trained_is_the_plain_model(
    model: VisionTransformer, batch: tuple[Tensor, Tensor], recompute: bool
) -> None:
    images, labels = batch
    expected = gradients(model, F.cross_entropy(model(images), labels))
    logits = training_forward(model, images, lowest_trained=0, embeddings_trained=True, recompute=recompute)
    found = gradients(model, F.cross_entropy(logits, labels))
    assert expected.keys() == found.keys() == {name for name, _ in model.named_parameters()}
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-14)


def test_a_block_that_is_run_again_has_the_precision_it_had(batch: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(0)
    model = VisionTransformer(SPEC)
    initialise(model)
    images, labels = batch[0].float(), batch[1]
    found = []
    for recompute in (False, True):
        with torch.autocast("cpu", torch.bfloat16):
            logits = training_forward(model, images, lowest_trained=0, embeddings_trained=True, recompute=recompute)
        found.append(gradients(model, F.cross_entropy(logits.float(), labels)))
    for name, expected in found[0].items():
        assert torch.equal(found[1][name], expected), name


@pytest.mark.parametrize("lowest", [0, 2, 4])
def test_blocks_below_the_lowest_trained_one_keep_nothing(
    model: VisionTransformer, batch: tuple[Tensor, Tensor], lowest: int
) -> None:
    images, labels = batch
    whole = gradients(model, F.cross_entropy(model(images), labels))
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = training_forward(model, images, lowest_trained=lowest)
    found = gradients(model, F.cross_entropy(logits, labels))
    trained = (*tuple(f"blocks.{index}." for index in range(lowest, SPEC.depth)), "norm.", "head.")
    assert set(found) == {name for name in whole if name.startswith(trained)}
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, whole[name], rtol=1e-9, atol=1e-14)
    if lowest == SPEC.depth:
        assert sum(kept) < 4 * len(images) * SPEC.tokens * SPEC.width  # final norm and head only


def test_dropped_tokens_take_no_part_in_what_follows(model: VisionTransformer, batch: tuple[Tensor, Tensor]) -> None:
    images, _ = batch
    controller = Controller(SPEC.depth, k=2, mode="random", initial_budget=0.6, seed=3)
    controller.draw()
    lengths: list[int] = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    training_forward(model, images, lowest_trained=0, controller=controller)
    assert lengths == [17, 1 + int(0.6 * 17), 1 + int(0.6 * 11), 1 + int(0.6 * 7)]


def test_running_a_block_again_imports_nothing() -> None:
    """34 MB of torch's symbolic shapes, for one."""
    code = """
import sys, torch
from edgetune.model.registry import find_spec
from edgetune.model.vit import VisionTransformer, initialise
from edgetune.train.forward import training_forward
model = VisionTransformer(find_spec("vit_nano_patch8_64").at(32, 3))
initialise(model)
before = set(sys.modules)
logits = training_forward(model, torch.zeros(1, 3, 32, 32), lowest_trained=0, embeddings_trained=True, recompute=True)
logits.sum().backward()
assert model.blocks[0].mlp.fc1.weight.grad is not None
print(*sorted(set(sys.modules) - before))
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == []
