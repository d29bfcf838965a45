from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from edgetune.alast import Controller, kept_count
from edgetune.model.spec import ViTSpec
from edgetune.schema import AlastPlan, BlockPlan

from .conftest import SPEC, batches, build


def forward(model, controller, images):
    """One training forward pass under the controller."""
    spec = model.spec
    x = model.embed(images)
    for index, block in enumerate(model.blocks):
        before = x
        wanted = controller.needs_attention(index)
        queries = 1 if spec.class_token else x.shape[1]
        x, received = block(x, with_received=wanted, query_tokens=queries)
        x = controller.after_block(index, before, x, received)
    return model.classify(x)


def test_nothing_of_the_method_imports_torch():
    code = "import sys, edgetune.alast; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_constrained_budgets_move_once_per_step_by_the_mean_delta():
    model = build()
    controller = Controller(SPEC.depth, k=2, mode="constrained", alpha=1e-3, reduction="mean")
    (images, _), (more, _) = batches((6, 6))
    with torch.no_grad():
        controller.draw()
        forward(model, controller, images)
        assert controller.budgets == (0.9,) * SPEC.depth, "a step drops with the budgets it began with"
        controller.draw()
        first = controller.budgets
        x = model.embed(images)
        y, _ = model.blocks[0](x)
        delta = float((y[:, 0] - x[:, 0]).square().sum()) / 6
        assert first[0] == pytest.approx(0.9 + 1e-3 * delta, rel=1e-6)
        forward(model, controller, more[:4])
        assert controller.budgets == first
        controller.draw()
        x = model.embed(more[:4])
        y, _ = model.blocks[0](x)
        later = float((y[:, 0] - x[:, 0]).square().sum()) / 4
        assert controller.budgets[0] == pytest.approx(0.9 + 1e-3 * later, rel=1e-6)
        second = controller.budgets
        controller.draw()
        assert controller.budgets == second, "a step without a forward pass has shown nothing"


def test_micro_batches_give_the_gradient_and_the_budgets_of_the_whole_batch():
    spec = SPEC
    (images, labels), (more, more_labels) = batches((6, 6))
    outcomes = []
    for parts in (1, 3):
        model = build().double()
        controller = Controller(spec.depth, k=spec.depth, mode="constrained", alpha=2e-2, reduction="mean")
        for step_images, step_labels in ((images, labels), (more, more_labels)):
            controller.draw()
            model.zero_grad()
            for part, part_labels in zip(step_images.chunk(parts), step_labels.chunk(parts), strict=True):
                loss = F.cross_entropy(forward(model, controller, part.double()), part_labels, reduction="sum")
                (loss / len(step_images)).backward()
        kept = controller.kept
        controller.draw()
        outcomes.append((controller.budgets, kept, [p.grad for p in model.parameters()]))
    assert outcomes[0][0] == pytest.approx(outcomes[1][0], rel=1e-12)
    assert outcomes[0][1] == outcomes[1][1]
    assert len(set(outcomes[0][0])) > 1
    for whole, split in zip(outcomes[0][2], outcomes[1][2], strict=True):
        torch.testing.assert_close(whole, split, rtol=1e-9, atol=1e-12)


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_constrained_never_leaves_the_plans_bounds(data):
    depth, patches = 4, 9
    lowest = data.draw(st.integers(0, depth - 1))
    blocks, most = [], patches
    for index in range(depth):
        most = data.draw(st.integers(1, most))
        fewest = data.draw(st.integers(1, most))
        blocks.append(BlockPlan(index=index, trainable=index >= lowest, keep_max_tokens=most, keep_min_tokens=fewest))
    settings_ = AlastPlan(mode="constrained", alpha=data.draw(st.sampled_from([0.0, 1e-2, 1.0])), reduction="mean")
    k = data.draw(st.integers(1, depth))
    prefix = data.draw(st.integers(1, 3))
    controller = Controller.from_plan(settings_, blocks, k, prefix_tokens=prefix, seed=1)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 9)))
    for _ in range(3):
        chosen = controller.draw()
        assert len(chosen) == min(k, depth - lowest)
        assert min(chosen) >= lowest
        x = torch.randn(2, prefix + patches, 4, generator=generator)
        for index, block in enumerate(blocks):
            entering = x.shape[1]
            after = x + torch.randn(x.shape, generator=generator)
            received = torch.rand(x.shape[:2], generator=generator)
            needed = controller.needs_attention(index, entering)
            y = controller.after_block(index, x, after, received if needed else None)
            left = y.shape[1] - prefix
            assert left <= block.keep_max_tokens
            assert left >= min(block.keep_min_tokens, entering - prefix)
            assert y.shape[1] <= entering
            assert torch.equal(y[:, :prefix], after[:, :prefix])
            assert controller.kept[index] == left
            x = y


@pytest.mark.parametrize("mode", ["reference", "constrained", "random"])
def test_a_resumed_run_goes_on_exactly(mode):
    steps = batches((5,) * 6)
    model = build()
    settings_ = {
        "k": 2,
        "mode": mode,
        "alpha": 1e-3,
        "reduction": "mean" if mode == "constrained" else "sum",
        "seed": 3,
    }

    def run(controller, some):
        trace = []
        with torch.no_grad():
            for images, _ in some:
                chosen = controller.draw()
                forward(model, controller, images)
                trace.append((chosen, controller.budgets, controller.kept))
        return trace

    whole = run(Controller(SPEC.depth, **settings_), steps)
    first = Controller(SPEC.depth, **settings_)
    begun = run(first, steps[:3])
    state = json.loads(json.dumps(first.state_dict()))
    second = Controller(SPEC.depth, **settings_)
    second.load_state_dict(state)
    assert second.state_dict() == first.state_dict()
    assert begun + run(second, steps[3:]) == whole
    assert len({chosen for chosen, _, _ in whole}) > 1


def test_random_mode_measures_nothing():
    controller = Controller(SPEC.depth, k=2, mode="random", initial_budget=0.8, draw="top", alpha=1.0)
    model = build()
    with torch.no_grad():
        draws = set()
        for images, _ in batches((4,) * 8):
            draws.add(controller.draw())
            forward(model, controller, images)
    assert controller.budgets == (0.8,) * SPEC.depth
    assert controller.kept[0] == kept_count(0.8, SPEC.patches + 1)
    assert len(draws) > 1, "drawn, not the top"


def test_attention_is_asked_for_only_where_tokens_will_be_dropped():
    whole = Controller(3, k=3, mode="constrained", initial_budget=1.0)
    assert not whole.needs_attention(0, tokens=20)
    assert Controller(3, k=3, mode="constrained").needs_attention(0, tokens=20)
    assert Controller(3, k=3, initial_budget=1.0).needs_attention(0, tokens=20), "the reference updates first"
    assert not Controller(3, k=3, budget_min=1.0).needs_attention(0, tokens=20)
    assert not Controller(3, k=3).needs_attention(0, tokens=2), "one patch is left"
    x = torch.zeros(1, 20, 4)
    with pytest.raises(ValueError, match="needs the attention"):
        Controller(3, k=3).after_block(0, x, x, None)


def test_tightening_only_tightens():
    controller = Controller(4, k=3, mode="constrained", bands=[(4, 9), (4, 8), (2, 7), (2, 6)])
    controller.tighten(k=2, lowest_trainable=2, keep_max_tokens=[9, 3, 9, 5])
    controller.tighten(k=4, lowest_trainable=0, keep_max_tokens=[99, 99, 99, 99])
    assert controller.k == 2
    assert controller.trainable == (2, 3)
    assert controller.state_dict()["bands"] == [[4, 9], [3, 3], [2, 7], [2, 5]]
    assert controller.draw() == (2, 3)


@pytest.mark.parametrize(
    "changes",
    [
        {"class_token": False, "pool": "avg"},
        {"distillation_token": True},
        {"register_tokens": 4, "position_on_prefix": False, "layer_scale": True},
    ],
)
def test_other_prefixes(changes):
    spec = ViTSpec(name="other", width=24, depth=3, heads=3, patch_size=4, image_size=24, classes=4, **changes)
    model = build(spec)
    controller = Controller(
        3, k=2, alpha=1e-4, prefix_tokens=spec.prefix, class_token=spec.class_token, mode="reference"
    )
    (images, labels), *_ = batches((4,), spec)
    controller.draw()
    loss = F.cross_entropy(forward(model, controller, images), labels)
    loss.backward()
    assert torch.isfinite(loss)
    assert controller.kept[0] == kept_count(controller.budgets[0], spec.patches + 1)
    assert all(budget != 0.9 for budget in controller.budgets)


def test_bands_of_another_depth_are_refused():
    with pytest.raises(ValueError, match="4 pairs"):
        Controller(4, k=2, bands=[(1, 2)])
