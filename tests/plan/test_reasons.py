"""`why`: a sentence for every choice, whoever made it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edgetune.model.registry import find_spec
from edgetune.plan import make_plan
from edgetune.plan.levers import Levers
from edgetune.plan.methods import Method, find_method, with_levers
from edgetune.plan.reasons import Decisions, why
from edgetune.plan.search import Choice, Limits, Problem, Setting, search
from tests.plan.conftest import make_profile

MODEL = "vit_nano_patch8_64"
# By lever and value: what a sentence says where the plan has it so. Every lever has a line.
SENTENCES: dict[str, dict[object, str]] = {
    "trainer": {"lean": "The lean trainer runs the blocks"},
    "trained_blocks": {2: r"Blocks 4 to 5 of 6 train", 6: r"All 6 blocks train"},
    "k": {1: r"1 of them are drawn at each step"},
    "token_min": {0.25: r"Between 16 and \d+ of 64 patches leave each block"},
    "token_max": {0.5: r"32 of 64 patches leave each block"},
    "precision": {"bf16": r"Matrices are multiplied in bf16"},
    "frozen_precision": {"bf16": r"Matrices below the lowest trained block are multiplied in bf16"},
    "frozen_weights": {
        "fp32": r"weights are kept exactly",
        "bf16": r"weights are kept in bf16",
        "int8": r"weights are kept in 8 bits",
        "disk": r"weights are read from the disk",
    },
    "optimizer": {"adam": "Adam updates", "sgd": "SGD with momentum", "sgd-plain": "SGD without momentum"},
    "optimizer_state": {
        "int8": r"AdamW keeps its moments in 8 bits\.",
        "factored": r"AdamW keeps its moments in 8 bits and as means of rows and columns",
    },
    "saved_activations": {"recompute": r"the rest is run again"},
    "recompute_share": {0.5: r"; of the lowest( \d+)? blocks? only each half block's input"},
    "saved_precision": {
        "fp32": r"backward pass is kept exactly",
        "bf16": r"backward pass is kept in bf16",
        "int8": r"backward pass is kept in 8 bits",
        "int4": r"backward pass is kept in 4 bits",
    },
    "part_tokens": {65: r"of which 1 pass a block at a time, about 65 tokens"},
    "feature_cache": {"fp16": r"kept on disk \(fp16\)", "int8": r"kept on disk \(int8\)", "off": r"run at every step"},
    "feature_views": {1: r"augmentation is given up", 3: r"augmentation is down to 3 views an image"},
}  # fmt: skip


def test_every_lever_has_a_line() -> None:
    assert set(SENTENCES) == set(Levers.__struct_fields__)


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in SENTENCES.items() for value in values])
def test_every_lever_set_by_hand_has_its_sentence(name: str, value: object, photos: Path) -> None:
    levers = ["trainer=lean", "trained_blocks=2", f"{name}={value}"]
    if name == "token_max":
        levers.append("token_min=0.5")
    if name == "recompute_share":
        levers.append("saved_activations=recompute")
    plan = make_plan(photos, model=MODEL, profile=make_profile(), levers=levers, batch_size=8)
    assert sum(bool(re.search(SENTENCES[name][value], sentence)) for sentence in plan.why) == 1, plan.why


def test_autograd_that_runs_blocks_again_says_so(photos: Path) -> None:
    plan = make_plan(photos, model=MODEL, profile=make_profile(), method="checkpoint")
    assert any("the rest is run again" in sentence for sentence in plan.why)


def sentences(problem: Problem, limits: Limits, choice: Choice) -> list[str]:
    return why(Decisions(problem, limits, choice, problem.batch_size, "--memory", True, None))


def expected(method: Method, setting: Setting, depth: int) -> list[str]:
    """What has to be said of a setting that is not the method's own."""
    found = []
    if setting.trained != method.trained:
        found.append(rf"— {method.trained} did not fit the caps" if setting.trained else "Only the final norm")
    if setting.k < setting.trained:
        found.append(rf"{setting.k} of them are drawn at each step")
    if setting.trained and setting.band_max < method.band[1]:
        found.append(r"lowered from \d+: more did not fit the caps")
    for name in Levers.__struct_fields__:
        value = getattr(setting.levers, name)
        trains_nothing = not setting.trained and name.startswith(("saved_", "recompute_"))
        if value != getattr(method.levers, name) and not trains_nothing and value in SENTENCES[name]:
            found.append(SENTENCES[name][value])
    return found


def test_every_choice_of_the_search_has_its_sentence() -> None:
    """From a cap with room for all down to none: whatever differs from the method's own is said, with its reason."""
    spec = find_spec("vit_tiny_patch16_224")
    seen: set[str] = set()
    for levers in (
        ["trained_blocks=6", "saved_precision=fp32", "feature_cache=off", "frozen_weights=fp32"],
        ["trained_blocks=4", "saved_precision=bf16"],
    ):
        method = with_levers(find_method("edgetune", 12), levers, 12)._replace(given=frozenset())
        problem = Problem(method, spec, 16, 0, 10, 100, 20, 0, None, None)
        top = problem.peak_bytes(problem.job(next(problem.settings()), problem.whole))
        for cap in range(2 * top, 0, -top // 40):
            limits = Limits(memory_bytes=cap)
            choice = search(problem, limits)
            if choice is None:
                break
            said = sentences(problem, limits, choice)
            for pattern in expected(method, choice.setting, spec.depth):
                assert any(re.search(pattern, sentence) for sentence in said), (pattern, said)
                seen.add(pattern)
            in_parts = choice.job.micro_batch_size < problem.whole
            assert any("as many as the memory cap has room for" in sentence for sentence in said) == in_parts
            lean = choice.job.allocator == "lean"
            assert any("goes back to the kernel at once" in sentence for sentence in said) == lean
            assert len(said) == len(set(said))
    assert len(seen) >= 6, seen  # the search did turn levers


def test_no_sentence_promises_what_the_plan_does_not_do(photos: Path) -> None:
    plan = make_plan(photos, model=MODEL, profile=make_profile(), method="full")
    assert not any("lean" in sentence or "frozen" in sentence.lower() for sentence in plan.why)
