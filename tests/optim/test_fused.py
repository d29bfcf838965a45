"""The update kernels, held to torch's own optimizers, and what they must not bring along."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

from edgetune.optim.fused import Optimizer


def models() -> tuple[nn.Sequential, nn.Sequential]:
    pair = []
    for _ in range(2):
        torch.manual_seed(0)
        pair.append(nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3)))
    return pair[0], pair[1]


def theirs(kind: str, model: nn.Module, weight_decay: float) -> torch.optim.Optimizer:
    named = list(model.named_parameters())
    groups = [
        {"params": [p for _, p in named if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for _, p in named if p.ndim < 2], "weight_decay": 0.0},
    ]
    makers: dict[str, Any] = {
        "adamw": lambda: torch.optim.AdamW(groups, lr=1e-2),
        "adam": lambda: torch.optim.Adam(groups, lr=1e-2),
        "sgd": lambda: torch.optim.SGD(groups, lr=1e-2, momentum=0.9),
    }
    optimizer: torch.optim.Optimizer = makers[kind]()
    return optimizer


@pytest.mark.parametrize("kind", ["adamw", "adam", "sgd"])
def test_updates_are_those_of_torch_frozen_steps_included(kind: Any) -> None:
    mine, other = models()
    ours, reference = Optimizer(kind, mine.named_parameters(), 0.1), theirs(kind, other, 0.1)
    generator = torch.Generator().manual_seed(1)
    for step in range(6):
        x = torch.randn(5, 6, generator=generator)
        for model in (mine, other):
            for parameter in model[0].parameters():  # a block that rests every other step
                parameter.requires_grad_(step % 2 == 1)
            model(x).square().mean().backward()
        for group in reference.param_groups:
            group["lr"] = 1e-2 / (1 + step)
        ours.step(1e-2 / (1 + step))
        reference.step()
        ours.zero_grad()
        reference.zero_grad(set_to_none=True)
        for left, right in zip(mine.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-7)


def test_state_comes_with_the_first_gradient_and_stays() -> None:
    model, _ = models()
    optimizer = Optimizer("adamw", model.named_parameters(), 0.0)
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
    model(torch.ones(2, 6)).sum().backward()
    optimizer.step(1e-3)
    assert set(optimizer.state) == {"1.weight", "1.bias", "2.weight", "2.bias"}
    optimizer.zero_grad()
    optimizer.step(1e-3)
    assert all(float(state["step"]) == 1.0 for state in optimizer.state.values())


STEP = """
import sys, torch
from edgetune.optim.fused import Optimizer
model = torch.nn.Linear(4, 2)
optimizer = Optimizer("adamw", model.named_parameters(), 0.1)
model(torch.ones(3, 4)).sum().backward()
optimizer.step(1e-3)
sys.exit("torch._dynamo" in sys.modules)
"""


def test_a_step_does_not_import_the_compiler() -> None:
    assert subprocess.run([sys.executable, "-c", STEP], check=False).returncode == 0
