"""Update rules on flat groups: against torch's, against the rule written out, and what fewer bits may cost."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from edgetune.model.registry import find_spec
from edgetune.model.spec import Parameter
from edgetune.optim import lean as room
from edgetune.optim.flat import Group
from edgetune.optim.fused import Optimizer
from edgetune.optim.lean import GroupOptimizer, Kind, StatePrecision

PARAMETERS = [
    Parameter("a.bias", (37,)),
    Parameter("a.weight", (37, 24)),
    Parameter("pos_embed", (1, 5, 24)),
    Parameter("b.weight", (24, 3, 2, 2)),
    Parameter("norm.weight", (24,)),
]
RATE, STEPS, BETAS = 1e-3, 12, (0.9, 0.999)


def make_group(seed: int = 0) -> Group:
    group = Group("test", PARAMETERS)
    torch.manual_seed(seed)
    group.values.normal_()
    return group


def make_gradients(group: Group, steps: int = STEPS) -> list[Tensor]:
    """Of every size, as parameters' are: a factor of a thousand between parameters, noise around a direction."""
    torch.manual_seed(1)
    sizes = torch.cat([torch.full((part.size,), 10.0 ** -(place % 4)) for place, part in enumerate(group.stretches)])
    direction = torch.randn(group.size)
    return [sizes * (0.3 * direction + torch.randn(group.size)) for _ in range(steps)]


def updated(group: Group, kind: Kind, precision: StatePrecision, weight_decay: float = 0.1) -> GroupOptimizer:
    optimizer = GroupOptimizer(group, kind, precision, weight_decay)
    for step, gradient in enumerate(make_gradients(group)):
        optimizer.step(gradient.clone(), RATE / (1 + step))
    return optimizer


@pytest.mark.parametrize("kind", ["adamw", "adam", "sgd"])
def test_full_state_is_torchs_update(kind: Literal["adamw", "adam", "sgd"]) -> None:
    """Rates that change and decay included; `edgetune.optim.fused` is held to torch.optim by its own tests."""
    ours = make_group()
    named = {name: nn.Parameter(values.clone()) for name, values in ours.weights.items()}
    theirs = Optimizer(kind, named.items(), 0.1)
    for step, gradient in enumerate(make_gradients(ours)):
        for name, values in ours.views(gradient).items():
            named[name].grad = values.clone()
        theirs.step(RATE / (1 + step))
    updated(ours, kind, "fp32")
    for name, values in ours.weights.items():
        torch.testing.assert_close(values, named[name].detach(), rtol=1e-6, atol=1e-6)


def test_plain_sgd_keeps_nothing() -> None:
    group = make_group()
    before = group.values.clone()
    optimizer = GroupOptimizer(group, "sgd-plain", "fp32", 0.0)
    gradient = make_gradients(group)[0]
    optimizer.step(gradient.clone(), 0.5)
    assert group.values.equal(before - 0.5 * gradient)
    assert optimizer.state == {}


# -- state in 8 bits --------------------------------------------------------------------------------------------------


def exact_moments(group: Group, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Both moments after so many steps, and the largest first moment within each group of scales over time."""
    first, second, largest = (torch.zeros(group.size) for _ in range(3))
    for gradient in make_gradients(group)[:steps]:
        first.lerp_(gradient, 1 - BETAS[0])
        second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        padded = nn.functional.pad(first.abs(), (0, -group.size % room._SCALE_GROUP))
        tops = padded.view(-1, room._SCALE_GROUP).amax(1, keepdim=True)
        largest = torch.maximum(largest, tops.expand(-1, room._SCALE_GROUP).reshape(-1)[: group.size])
    return first, second, largest


@pytest.mark.parametrize("piece", [room._PIECE, 2 * room._SCALE_GROUP])
def test_no_step_of_the_8_bit_state_is_larger_than_it_should_be(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second moment never comes out too small, and the first is off by rounding alone.

    A rounded first moment is off by half a scale at most, which the next steps remember for as long as they remember
    everything: β / (1 - β) of it in all, with a 127th of the largest of its group as the scale.
    """
    monkeypatch.setattr(room, "_PIECE", piece)
    group = make_group()
    optimizer = GroupOptimizer(group, "adamw", "int8", 0.0)
    slack = 0.5 * BETAS[0] / (1 - BETAS[0]) / 127 * 1.1  # scales grow by the rounding, too
    for step, gradient in enumerate(make_gradients(group), start=1):
        before = group.values.clone()
        optimizer.step(gradient.clone(), RATE)
        first, second, largest = exact_moments(group, step)
        second_root = (second / (1 - BETAS[1] ** step)).sqrt() + 1e-8
        bound = RATE / (1 - BETAS[0] ** step) * (first.abs() + slack * largest) / second_root
        assert bool(((group.values - before).abs() <= bound * (1 + 1e-4) + 1e-6).all()), step
        kept = optimizer.state["second"].view(-1, room._SCALE_GROUP) * optimizer.state["second_scales"][:, None]
        assert bool((kept.double().pow(4).view(-1)[: group.size] >= second.double() * (1 - 1e-4)).all()), step


@pytest.mark.parametrize("precision", ["int8", "factored"])
def test_small_state_goes_where_adamw_goes(precision: StatePrecision) -> None:
    """Where gradients are of one size, that is: of those beside much larger ones, 8 bits hold less."""
    exact, small = make_group(), make_group()
    start = exact.values.clone()
    updated(exact, "adamw", "fp32")
    updated(small, "adamw", precision)
    for name in exact.weights:
        moved = [group.weights[name] - group.views(start)[name] for group in (exact, small)]
        found = float(nn.functional.cosine_similarity(moved[0].flatten(), moved[1].flatten(), dim=0))
        assert found >= (0.99 if precision == "int8" and len(moved[0]) > 30 and name != "pos_embed" else 0.9), name


@pytest.mark.parametrize("precision", ["int8", "factored"])
def test_the_first_step_has_no_rounding_in_it(precision: StatePrecision) -> None:
    """Vectors move as in AdamW; so do matrices where nothing is factored."""
    exact, small = make_group(), make_group()
    gradient = make_gradients(exact)[0]
    GroupOptimizer(exact, "adamw", "fp32", 0.1).step(gradient.clone(), RATE)
    GroupOptimizer(small, "adamw", precision, 0.1).step(gradient.clone(), RATE)
    for name, values in exact.weights.items():
        if precision == "int8" or values.ndim == 1:
            torch.testing.assert_close(small.weights[name], values, rtol=1e-5, atol=1e-6)


def test_factored_second_moments_are_the_rule_written_out() -> None:
    """For matrices whose first moment is exact in 8 bits: it is a whole multiple of its scale when gradients repeat."""
    group = Group("test", [Parameter("a.weight", (4, 256))])
    group.values.fill_(1.0)
    optimizer = GroupOptimizer(group, "adamw", "factored", 0.01)
    torch.manual_seed(0)
    scale = torch.rand(4, 1) + 0.5
    gradient = scale * torch.randn(4, 256).sign()  # each row of one size: rows tell all there is to know
    for _ in range(3):
        optimizer.step(gradient.clone().flatten(), RATE)
    # rows · columns / mean is the square of the gradient, so every step is the rate, and decay
    decayed = torch.ones(4, 256)
    for _ in range(3):
        decayed = decayed * (1 - RATE * 0.01) - RATE * gradient.sign()
    torch.testing.assert_close(group.values.view(4, 256), decayed, rtol=0, atol=2e-5)


@pytest.mark.parametrize("precision", ["int8", "factored"])
def test_small_state_finds_the_minimum(precision: StatePrecision) -> None:
    group = make_group()
    target = make_group(seed=5).values
    optimizer = GroupOptimizer(group, "adamw", precision, 0.0)
    start = float((group.values - target).norm())
    for step in range(400):
        optimizer.step(group.values - target, 0.05 * (1 - step / 400))
    assert float((group.values - target).norm()) < 0.02 * start


def test_a_gradient_of_zeros_moves_nothing_and_makes_no_holes() -> None:
    for precision in ("fp32", "int8", "factored"):
        group = make_group()
        before = group.values.clone()
        optimizer = GroupOptimizer(group, "adamw", precision, 0.0)
        for _ in range(3):
            optimizer.step(torch.zeros(group.size), RATE)
        assert group.values.equal(before)
        optimizer.step(make_gradients(group)[0], RATE)
        assert bool(group.values.isfinite().all())


@pytest.mark.parametrize(
    ("kind", "precision", "bytes_each"),
    [("adamw", "fp32", 8.0), ("adam", "fp32", 8.0), ("sgd", "fp32", 4.0), ("adamw", "int8", 2.03),
     ("adamw", "factored", 1.06)],
)  # fmt: skip
def test_state_is_as_small_as_said(kind: Kind, precision: StatePrecision, bytes_each: float) -> None:
    spec = find_spec("vit_tiny_patch16_224")
    group = Group("test", [item for item in spec.block_parameters(0) if ".mlp." in item.name])
    optimizer = GroupOptimizer(group, kind, precision, 0.0)
    optimizer.prepare()
    held = sum(value.nbytes for value in optimizer.state.values())
    assert held <= bytes_each * group.size * 1.01
    optimizer.step(torch.ones(group.size), RATE)
    assert sum(value.nbytes for value in optimizer.state.values()) == held


@pytest.mark.parametrize("precision", ["fp32", "int8", "factored"])
@pytest.mark.parametrize("kind", ["adamw", "adam", "sgd", "sgd-plain"])
def test_state_goes_through_a_file_bit_for_bit(kind: Kind, precision: StatePrecision) -> None:
    group = make_group()
    optimizer = updated(group, kind, precision)
    stored = {name: value.clone() for name, value in optimizer.state.items()}
    other = make_group()
    other.values.copy_(group.values)
    again = GroupOptimizer(other, kind, precision, 0.1)
    again.prepare()
    again.load(stored, optimizer.steps)
    assert again.steps == STEPS
    for gradient in make_gradients(group, 3):
        optimizer.step(gradient.clone(), RATE)
        again.step(gradient.clone(), RATE)
    assert group.values.equal(other.values)
    assert math.isfinite(float(group.values.norm()))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_state_from_before_the_first_step_leaves_the_memory_where_it_is(precision: StatePrecision) -> None:
    group = make_group()
    optimizer = GroupOptimizer(group, "adamw", precision, 0.0)
    optimizer.prepare()
    places = {name: value.data_ptr() for name, value in optimizer.state.items()}
    optimizer.load({}, 0)
    first = make_gradients(group)[0]
    optimizer.step(first.clone(), RATE)
    expected = make_group()
    GroupOptimizer(expected, "adamw", precision, 0.0).step(first.clone(), RATE)
    assert group.values.equal(expected.values)
    optimizer.load({name: value.clone() for name, value in optimizer.state.items()}, 1)
    assert {name: value.data_ptr() for name, value in optimizer.state.items()} == places


def test_the_state_of_another_plan_is_refused() -> None:
    optimizer = updated(make_group(), "adamw", "int8")
    with pytest.raises(ValueError, match="the optimizer's state of test is of another plan"):
        GroupOptimizer(make_group(), "adamw", "fp32", 0.1).load(optimizer.state, 3)
    smaller = Group("smaller", PARAMETERS[:2])
    with pytest.raises(ValueError, match="of another plan"):
        GroupOptimizer(smaller, "adamw", "int8", 0.1).load(optimizer.state, 3)
