"""Absurd questions: an answer that holds, or one sentence; never a traceback, a number that is none, or a long wait."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgetune import schema
from edgetune.errors import EdgetuneError, InfeasibleError, InputError
from edgetune.plan import make_plan
from edgetune.plan.bill import expected_bill, memory_bill
from edgetune.plan.job import job_of
from edgetune.schema import Plan, Profile, TensorCost
from edgetune.train.knobs import ladder
from tests.pace import slowness
from tests.plan.conftest import make_profile

MODELS = ("vit_nano_patch8_64", "vit_tiny_patch16_224", "vit_large_patch16_384", "deit_small_distilled_patch16_224")
METHODS = ("edgetune", "full", "checkpoint", "alast", "random-k", "alast-lora", "lora", "head", "last-1", "last-99")
ABSURD = (0.0, -1.0, 1e-300, 1e-9, 0.5, 1.0, 30.0, 1e6, 1e18, 1e300, math.inf, -math.inf, math.nan)
COUNTS = (-1, 0, 1, 2, 3, 7, 40, 1000, 10**6, 10**12, 2**63, 10**30)


def quantity() -> st.SearchStrategy[float | None]:
    return st.one_of(st.none(), st.sampled_from(ABSURD), st.floats(0.001, 1e5))


def count() -> st.SearchStrategy[int | None]:
    return st.one_of(st.none(), st.sampled_from(COUNTS), st.integers(1, 64))


LEVERS = st.lists(
    st.sampled_from(
        [
            "trained_blocks=1", "trained_blocks=1000000", "k=1", "k=1000000000000", "part_tokens=1",
            "part_tokens=1000000000000", "feature_views=1000000000", "feature_cache=off", "feature_cache=int8",
            "token_min=1e-300", "token_max=1e-300", "token_max=1", "token_min=nan", "saved_precision=int4",
            "saved_activations=recompute", "frozen_weights=disk", "trainer=lean", "trainer=autograd",
            "optimizer=sgd-plain", "precision=bf16", "optimizer_state=int8",
        ]
    ),
    max_size=4,
)  # fmt: skip
ABSURDITIES: dict[str, st.SearchStrategy[Any]] = {
    "memory_bytes": st.sampled_from(COUNTS),
    "energy_j": quantity(),
    "time_s": quantity(),
    "disk_bytes": count(),
    "power_w": quantity(),
    "epochs": count(),
    "batch_size": count(),
    "image_size": st.sampled_from((*COUNTS[:-2], 32, 64, 224)),
    "lr": quantity(),
    "threads": count(),
    "workers": count(),
    "patience": count(),
    "evaluate_every": st.sampled_from((-1, 0, 1, 2, 10**12)),
    "seed": st.sampled_from((-1, 0, 5, 2**63)),
    "method": st.sampled_from(METHODS),
}


@st.composite
def options_(draw: st.DrawFn) -> dict[str, Any]:
    """A sound question with up to two absurdities in it: more, and the first one is all that is ever looked at."""
    sound = {
        "model": draw(st.sampled_from(MODELS)),
        "method": draw(st.sampled_from(METHODS[:-1])),
        "memory_bytes": draw(st.one_of(st.none(), st.integers(300 << 20, 3 << 30))),
        "energy_j": draw(st.one_of(st.none(), st.none(), st.floats(20, 1e5))),
        "time_s": draw(st.one_of(st.none(), st.none(), st.floats(5, 1e5))),
        "power_w": 5.0,
        "levers": [],
    }
    if draw(st.booleans()):
        sound |= {"method": "edgetune", "levers": draw(LEVERS)}
    names = draw(st.sets(st.sampled_from(sorted(ABSURDITIES)), max_size=2))
    return sound | {name: draw(ABSURDITIES[name]) for name in names}


def profiles() -> st.SearchStrategy[Profile | None]:
    """None, a sound one, and ones whose figures a broken sensor or a stopped clock might have given."""

    def broken(seconds: float, rate: float, watts: float | None, runtime: int | None) -> Profile:
        profile = make_profile(watts=watts)
        costs = [msgspec.structs.replace(cost, seconds=seconds * cost.seconds) for cost in profile.compute.block_costs]
        compute = msgspec.structs.replace(
            profile.compute,
            block_costs=costs,
            gemm_flops={"fp32": rate, "bf16": rate},
            copy_bytes_per_s=rate,
            tensor_costs=[
                TensorCost(operation="keep", lever="int8", numbers=100, seconds=seconds),
                TensorCost(operation="keep", lever="int8", numbers=10_000, seconds=rate),
                TensorCost(operation="update", lever="lean/adamw/factored", numbers=0, seconds=seconds),
            ],
            decode_bytes_per_s=rate,
            render_values_per_s=rate,
            runtime_bytes=runtime,
        )
        return msgspec.structs.replace(profile, compute=compute)

    figures = st.sampled_from((0.0, 1e-12, 1.0, 1e9, 1e15))
    watts = st.sampled_from((None, 0.0, -5.0, 1e-9, 4.0, 1e9))
    return st.one_of(
        st.none(),
        st.just(make_profile(watts=4.0)),
        st.builds(broken, figures, figures, watts, st.sampled_from((None, 0))),
    )


def check(plan: Plan) -> None:
    """What holds of every plan."""
    predicted, caps = plan.predicted, plan.caps
    most = predicted.peak_memory_most_bytes
    assert most is not None
    assert caps.memory_bytes is None or predicted.peak_memory_bytes <= most <= caps.memory_bytes
    assert expected_bill(job_of(plan), predicted.memory.runtime) == predicted.memory
    assert predicted.memory.total == predicted.peak_memory_bytes
    assert memory_bill(job_of(plan), predicted.memory.runtime).total < most
    assert all(getattr(predicted.memory, name) >= 0 for name in predicted.memory.__struct_fields__)
    assert 1 <= plan.micro_batch_size <= plan.batch_size <= plan.data.train_images
    assert 1 <= plan.epochs <= plan.wanted_epochs
    assert max(1, 0.1 * plan.steps_per_epoch) <= plan.total_steps <= plan.epochs * plan.steps_per_epoch
    for cap, value in ((caps.time_s, predicted.total_s), (caps.energy_j, predicted.total_energy_j)):
        assert cap is None or value is None or value <= cap * (1 + 1e-6)
    numbers = (getattr(predicted, name) for name in predicted.__struct_fields__)
    assert all(math.isfinite(number) for number in numbers if isinstance(number, float))
    assert ladder(plan)[0].micro_batch_size == plan.micro_batch_size
    assert all(plan.why)
    text = schema.to_json(plan)
    assert msgspec.json.decode(text, type=Plan) == plan
    assert "NaN" not in text.decode()
    assert "Infinity" not in text.decode()


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None, max_examples=150
)
@given(options=options_(), profile=profiles())
def test_any_question_gets_an_answer_that_holds_or_one_sentence(
    photos: Path, options: dict[str, Any], profile: Profile | None
) -> None:
    began = time.process_time()
    plan: Plan | None = None
    refused: EdgetuneError | None = None
    try:
        plan = make_plan(photos, profile=profile, **options)
    except EdgetuneError as error:
        refused = error
    if plan is not None:
        check(plan)
    elif isinstance(refused, InfeasibleError):
        for name in ("memory_bytes", "energy_j", "time_s"):
            value = getattr(refused.nearest, name)
            if value is None or options.get(name) is None:
                continue
            assert value >= options[name]
            check(make_plan(photos, profile=profile, **(options | {name: value})))
            break
    else:
        assert refused is not None
        assert refused.exit_code == 2
        assert "\n" not in str(refused)
        assert str(refused).endswith((".", ")", "?"))
    spent = time.process_time() - began
    assert spent < 5.0 or spent < 5.0 * slowness()


@pytest.mark.parametrize("name", ["memory_bytes", "energy_j", "time_s", "power_w"])
@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, -math.inf])
def test_a_cap_is_a_positive_number(photos: Path, name: str, value: float) -> None:
    flag = "--" + name.split("_")[0]
    with pytest.raises(InputError, match=f"{flag} .* is not a positive number"):
        make_plan(photos, model=MODELS[0], profile=make_profile(watts=4.0), **{name: value})  # type: ignore[arg-type]


def test_a_sensor_that_shows_nothing_is_none(photos: Path) -> None:
    for watts in (0.0, -3.0):
        plan = make_plan(photos, model=MODELS[0], profile=make_profile(watts=watts))
        assert plan.predicted.total_energy_j is None
        with pytest.raises(InputError, match="--power"):
            make_plan(photos, model=MODELS[0], profile=make_profile(watts=watts), energy_j=100.0)


def test_no_disk_is_no_cache(photos: Path) -> None:
    plan = make_plan(photos, model=MODELS[0], profile=make_profile(), disk_bytes=0)
    assert plan.feature_cache is None
    assert json.loads(schema.to_json(plan))["caps"]["disk_bytes"] == 0
