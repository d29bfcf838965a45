"""The eager loop's pieces against edgetune's: the same function from the same weights, decay on the same tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from edgetune.bench.synthetic import make_weights
from edgetune.model.registry import find_spec
from edgetune.model.weights import build_model
from edgetune.optim.rules import decays as parameter_decays
from edgetune.plan import make_plan

pytest.importorskip("timm", reason="timm is not installed: edgetune[bench] brings it")
NAMES = ["vit_nano_patch8_64", "deit_tiny_distilled_patch16_224", "vit_wee_patch16_reg1_gap_256"]


@pytest.mark.parametrize("name", NAMES)
def test_the_same_function_and_the_same_decay(name: str, photos: Path, tmp_path: Path) -> None:
    from edgetune.bench import eager, shared

    torch.set_num_threads(1)
    weights = tmp_path / "weights.safetensors"
    make_weights(weights, model=name, image_size=32, classes=5, seed=0)  # another classifier: it is drawn afresh
    plan = make_plan(photos, model=name, weights=weights, image_size=32, batch_size=6, method="full", seed=3)
    spec = find_spec(name).at(32, 3)
    theirs: Any = shared.load_model(plan).eval()
    ours, report = build_model(spec, weights, class_names=plan.data.classes, seed=3)
    assert report.fresh_head
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(theirs(images), ours(images), rtol=0, atol=1e-5)
        assert theirs(images).std() > 0

    optimizer = eager._optimizer("eager-full", theirs, plan)
    names = {id(parameter): name for name, parameter in theirs.named_parameters()}
    decays = {
        names[id(parameter)]: group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]
    }
    assert decays == {
        name: plan.recipe.weight_decay if parameter_decays(name, parameter.shape) else 0.0
        for name, parameter in ours.named_parameters()
    }
    assert {0.0, plan.recipe.weight_decay} == set(decays.values())


def test_a_loss_that_is_no_number_ends_it(photos: Path) -> None:
    from edgetune.bench import eager
    from edgetune.errors import DivergedError

    plan = make_plan(photos, model=NAMES[0], image_size=32, batch_size=6, method="full", epochs=1, threads=1, lr=1e30)
    plan = msgspec.structs.replace(plan, recipe=msgspec.structs.replace(plan.recipe, warmup_steps=0))
    with pytest.raises(DivergedError, match="--lr 1e"):
        eager.run("eager-full", plan)
