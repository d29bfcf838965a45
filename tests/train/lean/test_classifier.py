"""The classifier's loss and gradients, by hand, against autograd."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from edgetune.train.lean.network import logits_of, loss_and_gradients
from tests.train.lean.conftest import SPECS


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dropped", [0, 5])
@pytest.mark.parametrize("name", SPECS)
def test_loss_and_gradients_are_those_of_autograd(name: str, dropped: int, smoothing: float) -> None:
    spec = SPECS[name]
    drawn = torch.Generator().manual_seed(1)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=drawn, dtype=torch.float64)

    weights = {parameter.name: random(*parameter.shape) for parameter in spec.head_parameters()}
    x, labels = random(6, spec.tokens - dropped, spec.width), torch.arange(6) % spec.classes
    leaf = x.clone().requires_grad_()
    leaves = {key: value.clone().requires_grad_() for key, value in weights.items()}
    expected = F.cross_entropy(logits_of(spec, leaves, leaf), labels, label_smoothing=smoothing)
    expected.backward()

    loss, dx, gradients = loss_and_gradients(spec, weights, x, labels, smoothing)
    assert loss == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(dx, leaf.grad, rtol=1e-9, atol=1e-12)
    assert gradients.keys() == leaves.keys()
    for key, value in leaves.items():
        torch.testing.assert_close(gradients[key], value.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", SPECS)
def test_a_loss_that_is_no_number_says_so(name: str) -> None:
    spec = SPECS[name]
    weights = {parameter.name: torch.full(parameter.shape, float("nan")) for parameter in spec.head_parameters()}
    loss, _, _ = loss_and_gradients(spec, weights, torch.ones(2, spec.tokens, spec.width), torch.tensor([0, 1]), 0.1)
    assert math.isnan(loss)
