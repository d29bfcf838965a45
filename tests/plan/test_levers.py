"""Levers: what can be set, what is refused, and that plan, job and command line mean the same by them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from edgetune.errors import InputError
from edgetune.model.registry import find_spec
from edgetune.plan import make_plan
from edgetune.plan.job import job_of, levers_of
from edgetune.plan.levers import Levers, economies, part_size, recomputed_blocks, set_levers
from edgetune.plan.methods import find_method, with_levers

CHOICES: dict[str, tuple[str, ...]] = {
    "trainer": ("lean",),
    "trained_blocks": ("1", "4"),
    "k": ("1", "3"),
    "token_min": ("0.25", "0.5"),
    "token_max": ("0.5", "1", "1.0"),
    "precision": ("fp32", "bf16"),
    "frozen_precision": ("fp32", "bf16"),
    "frozen_weights": ("fp32", "bf16", "int8", "disk"),
    "optimizer": ("adamw", "adam", "sgd", "sgd-plain"),
    "optimizer_state": ("fp32", "int8", "factored"),
    "saved_activations": ("full", "recompute"),
    "recompute_share": ("0.5", "1", "1.0"),
    "saved_precision": ("fp32", "bf16", "int8", "int4"),
    "feature_cache": ("off", "fp16", "int8"),
    "part_tokens": ("64", "800"),
    "feature_views": ("1", "3"),
}
LEAN = Levers(trainer="lean")
NANO = find_spec("vit_nano_patch8_64")


@st.composite
def texts(draw: st.DrawFn) -> dict[str, str]:
    names = draw(st.sets(st.sampled_from(sorted(CHOICES))))
    found = {name: draw(st.sampled_from(CHOICES[name])) for name in sorted(names)}
    return found | ({"saved_activations": "recompute"} if "recompute_share" in found else {})


def test_the_table_above_is_whole() -> None:
    assert set(CHOICES) == set(Levers.__struct_fields__)


@given(texts(), st.booleans(), st.data())
def test_what_is_given_is_set_and_nothing_else(values: dict[str, str], hyphens: bool, data: st.DataObject) -> None:
    written = [f"{name.replace('_', '-') if hyphens else name} = {value}" for name, value in values.items()]
    chosen = set_levers(LEAN, data.draw(st.permutations(written)))
    for name in Levers.__struct_fields__:
        found = getattr(chosen, name)
        if name in values:
            assert found == (type(found)(values[name])), name
        else:
            assert found == getattr(LEAN, name)


def test_the_last_word_counts_and_nothing_changes_nothing() -> None:
    assert set_levers(LEAN, ["k=2", "k=3"]).k == 3
    assert set_levers(LEAN, []) == LEAN


@given(st.text(max_size=30))
def test_any_other_text_is_one_sentence(text: str) -> None:
    assume(text.partition("=")[0].strip().replace("-", "_") not in Levers.__struct_fields__)
    with pytest.raises(InputError, match=r"(?s)^--lever .*\.$"):
        set_levers(LEAN, [text])


@given(
    st.sampled_from(sorted(set(CHOICES) - {"trained_blocks", "k", "part_tokens", "feature_views"})),
    st.text(max_size=12),
)
def test_any_other_value_is_one_sentence(name: str, value: str) -> None:
    assume(value.strip() not in CHOICES[name] and value.strip() != "autograd")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    assume(not (name.startswith("token") and 0 < number <= 1) and name != "recompute_share")
    with pytest.raises(InputError, match=r"(?s)^--lever.*\.$"):
        set_levers(LEAN, [f"{name}={value}"])


@pytest.mark.parametrize(
    "value", ["token_min=0", "token_min=-1", "token_max=1.01", "token_max=nan", "token_min=inf", "token_min=1e9"]
)
def test_shares_are_shares(value: str) -> None:
    with pytest.raises(InputError, match=r"0 < token_min <= token_max <= 1"):
        set_levers(LEAN, [value])


@pytest.mark.parametrize("lever", ["frozen_precision=bf16", "frozen_weights=disk", "optimizer_state=int8",
                                   "saved_precision=bf16", "feature_cache=fp16", "feature_views=2",
                                   "optimizer=sgd-plain"])  # fmt: skip
def test_what_autograd_cannot_do_is_refused(lever: str) -> None:
    name = lever.split("=")[0]
    with pytest.raises(InputError, match=f"--lever {name}=.* needs the lean trainer; add trainer=lean"):
        set_levers(Levers(), [lever])
    set_levers(Levers(), [lever, "trainer=lean"])
    set_levers(Levers(), ["precision=bf16", "saved_activations=recompute", "trained_blocks=2", "optimizer=sgd"])


def test_a_share_is_of_blocks_that_are_run_again() -> None:
    with pytest.raises(InputError, match="recompute_share needs blocks that are run again; add saved_activations="):
        set_levers(LEAN, ["recompute_share=1"])
    with pytest.raises(InputError, match="0 < recompute_share <= 1"):
        set_levers(LEAN, ["saved_activations=recompute", "recompute_share=0"])
    with pytest.raises(InputError, match=r"recompute_share=0\.5 needs the lean trainer"):
        set_levers(Levers(), ["saved_activations=recompute", "recompute_share=0.5"])


def test_the_lowest_blocks_are_run_again() -> None:
    levers = set_levers(LEAN, ["saved_activations=recompute", "recompute_share=0.5"])
    assert recomputed_blocks(levers, 8, 12) == range(8, 10)
    assert recomputed_blocks(levers, 9, 12) == range(9, 11)
    assert recomputed_blocks(LEAN, 8, 12) == range(8, 8)
    assert recomputed_blocks(set_levers(LEAN, ["saved_activations=recompute"]), 8, 12) == range(8, 12)


def test_what_is_run_again_is_tried_by_halves_unless_it_was_said() -> None:
    def tried(*given: str) -> set[tuple[str, float]]:
        forms = economies(set_levers(LEAN, given), {text.split("=")[0] for text in given})
        return {(form.saved_activations, form.recompute_share) for form in forms}

    assert tried() == {("full", 1.0), ("recompute", 0.5), ("recompute", 1.0)}
    assert tried("saved_activations=full") == {("full", 1.0)}
    assert tried("saved_activations=recompute", "recompute_share=0.25") == {("recompute", 0.25)}


def test_budgets_that_move_within_a_step_need_autograd() -> None:
    with pytest.raises(InputError, match="moves budgets once a step"):
        with_levers(find_method("alast", 12), ["trainer=lean"], 12)


def test_levers_bound_what_the_search_may_take() -> None:
    method = with_levers(find_method("edgetune", 12), ["trained_blocks=5", "k=2", "token_min=0.3", "token_max=0.6"], 12)
    assert (method.trained, method.k, method.band) == (5, 2, (0.3, 0.6))
    assert with_levers(find_method("edgetune", 12), ["trained_blocks=2", "k=9"], 12).k == 2
    assert with_levers(find_method("last-3", 12), ["trained_blocks=5"], 12).k == 5
    with pytest.raises(InputError, match="trained_blocks=13 is more than the 12 there are"):
        with_levers(find_method("edgetune", 12), ["trained_blocks=13"], 12)
    with pytest.raises(InputError, match="trains the embeddings, and so every block; use last-3"):
        with_levers(find_method("full", 12), ["trained_blocks=3"], 12)


ALL = {
    "trainer": "lean",
    "trained_blocks": "3",
    "k": "2",
    "token_min": "0.5",
    "token_max": "0.75",
    "precision": "bf16",
    "frozen_precision": "bf16",
    "frozen_weights": "int8",
    "optimizer": "adamw",
    "optimizer_state": "factored",
    "saved_activations": "recompute",
    "recompute_share": "0.5",
    "saved_precision": "int4",
    "feature_cache": "int8",
    "part_tokens": "128",
    "feature_views": "2",
}


def test_every_lever_is_in_the_plan_and_back_in_the_job(photos: Path) -> None:
    plan = make_plan(
        photos,
        model="vit_nano_patch8_64",
        method="edgetune",
        levers=[f"{name}={value}" for name, value in ALL.items()],
        disk_bytes=1 << 30,
    )
    levers = levers_of(plan)
    for name, value in ALL.items():
        if name not in ("trained_blocks", "k", "token_min", "token_max"):
            assert str(getattr(levers, name)) == value, name
    assert sum(block.trainable for block in plan.blocks) == 3
    assert plan.k == 2
    patches = NANO.patches
    assert [block.keep_max_tokens for block in plan.blocks] == [patches] * 2 + [patches * 3 // 4] * 4
    assert [block.keep_min_tokens for block in plan.blocks] == [patches] * 2 + [patches // 2] * 4
    job = job_of(plan)
    assert job.levers == levers
    assert (job.lean, job.cached, job.k) == (True, True, 2)
    assert msgspec.convert(msgspec.to_builtins(plan), type(plan)) == plan


@given(st.integers(1, 200), st.sampled_from([("vit_nano_patch8_64", 64), ("vit_base_patch16_224", 224)]))
def test_parts_are_even_cover_the_batch_and_stay_small(batch: int, model: tuple[str, int]) -> None:
    spec: Any = find_spec(model[0]).at(model[1])
    part = part_size(spec, batch)
    assert 1 <= part <= batch
    parts = -(-batch // part)
    assert part * parts - batch < parts  # the last is less than one image a part smaller
    assert part == 1 or part * spec.tokens <= max(800, spec.width) + spec.tokens / 2
