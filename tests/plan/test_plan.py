"""`make_plan`: inside its caps, or the nearest caps that would do."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console
from safetensors.numpy import save_file

from edgetune import schema
from edgetune.errors import InfeasibleError, InputError
from edgetune.model.header import WeightsMetadata
from edgetune.model.registry import find_spec
from edgetune.plan import make_plan
from edgetune.plan.bill import memory_bill
from edgetune.plan.explain import print_plan
from edgetune.plan.job import job_of
from edgetune.plan.levers import part_size
from edgetune.plan.methods import find_method, with_levers
from edgetune.plan.rates import Rates
from edgetune.plan.reasons import infeasible
from edgetune.plan.search import Limits, Problem, micro_batches, nearest_feasible, search
from edgetune.schema import Plan
from tests.pace import slowness
from tests.plan.conftest import make_profile

MIB = 1 << 20
MODEL = "vit_nano_patch8_64"


def test_without_pressure_the_default_recipe_stands(photos: Path) -> None:
    plan = make_plan(photos, model=MODEL, profile=make_profile())
    assert plan.method == "edgetune"
    method = find_method("edgetune", 6)
    lowest = 6 - method.trained
    assert [block.trainable for block in plan.blocks] == [False] * lowest + [True] * method.trained
    assert (plan.k, plan.lowest_trainable_block, plan.embeddings_trainable) == (method.k, lowest, False)
    low, high = (int(share * 64) for share in method.band)
    assert [block.keep_max_tokens for block in plan.blocks] == [64] * (lowest - 1) + [high] * (method.trained + 1)
    assert [block.keep_min_tokens for block in plan.blocks] == [64] * (lowest - 1) + [low] * (method.trained + 1)
    part = part_size(find_spec(MODEL), 32, method.levers.part_tokens) if method.levers.trainer == "lean" else 32
    assert (plan.batch_size, plan.micro_batch_size, plan.epochs) == (32, part, 10)
    assert (plan.steps_per_epoch, plan.total_steps) == (2, 20)
    assert plan.predicted.measured is False
    assert plan.data.classes == ["cat", "dog"]


def test_weights_of_images_normalised_otherwise_are_warned_of(photos: Path, tmp_path: Path) -> None:
    spec, weights = find_spec(MODEL), tmp_path / "mine.safetensors"

    def warnings(mean: tuple[float, float, float]) -> list[str]:
        told = WeightsMetadata(model="another", mean=mean, std=spec.std).strings()
        save_file({"x": np.zeros(1, np.float32)}, weights, told)
        made = make_plan(photos, model=MODEL, profile=make_profile(), weights=weights)
        return [warning for warning in made.warnings if "normalised" in warning]

    assert warnings(spec.mean) == []
    (said,) = warnings((0.1, 0.2, 0.3))
    assert "mine.safetensors" in said
    assert said.endswith("which is another.")
    weights.write_bytes(b"torn")
    assert (
        make_plan(photos, model=MODEL, profile=make_profile(), weights=weights).warnings
        == make_plan(photos, model=MODEL, profile=make_profile()).warnings
    )


def test_the_bill_of_a_plan_is_that_of_its_job(photos: Path) -> None:
    plan = make_plan(photos, model=MODEL, profile=make_profile())
    bill = memory_bill(job_of(plan), plan.predicted.memory.runtime)
    assert bill == plan.predicted.memory
    assert bill.total == plan.predicted.peak_memory_bytes


@pytest.mark.parametrize("method", ["alast", "full", "checkpoint", "head", "last-2", "lora", "alast-lora", "random-k"])
def test_every_method_plans_and_round_trips(photos: Path, method: str, tmp_path: Path) -> None:
    plan = make_plan(photos, model=MODEL, profile=make_profile(watts=5.0), method=method)
    schema.save(plan, tmp_path / "plan.json")
    assert schema.load(tmp_path / "plan.json", Plan) == plan
    assert plan.predicted.total_energy_j == pytest.approx(5.0 * (plan.predicted.total_s or 0))
    out = io.StringIO()
    print_plan(plan, Console(file=out, width=80))
    print_plan(plan, Console(file=out, width=80), costs=True)
    assert max(map(len, out.getvalue().splitlines())) <= 80
    assert method in out.getvalue()
    assert "optimizer" in out.getvalue()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(room=st.integers(20 * MIB, 400 * MIB), method=st.sampled_from(["edgetune", "full", "alast", "last-2", "lora"]))
def test_a_plan_never_predicts_more_than_its_cap(photos: Path, room: int, method: str) -> None:
    profile = make_profile()
    cap = 300 * MIB + room
    try:
        plan = make_plan(photos, model=MODEL, profile=profile, memory_bytes=cap, method=method)
    except InfeasibleError as error:
        needed = error.nearest.memory_bytes
        assert needed is not None
        assert needed > cap
        plan = make_plan(photos, model=MODEL, profile=profile, memory_bytes=needed, method=method)
        cap = needed
    assert plan.predicted.peak_memory_bytes <= cap


def test_more_memory_never_buys_less_learning() -> None:
    from edgetune.model.registry import find_spec

    spec = find_spec(MODEL)
    problem = Problem(find_method("edgetune", spec.depth), spec, 32, 0, 10, 100, 20, 0, None, None)
    found = [search(problem, Limits(memory_bytes=cap * MIB)) for cap in range(8, 200, 6)]
    learning = [0.0 if choice is None else choice.learning for choice in found]
    assert learning == sorted(learning)
    assert learning[0] == 0.0
    assert learning[-1] == pytest.approx(max(learning))


def test_a_batch_stays_whole_where_splitting_would_cost_memory() -> None:
    """Gradients held beside activations: for a large model and a small batch, one piece is the smaller bill."""
    from edgetune.model.registry import find_spec

    spec = find_spec("vit_large_patch16_224")
    problem = Problem(find_method("full", spec.depth), spec, 2, 0, 10, 100, 20, 0, None, None)
    least = nearest_feasible(problem, [Limits(memory_bytes=1)])[0].memory_bytes
    assert least is not None
    choice = search(problem, Limits(memory_bytes=least))
    assert choice is not None
    assert choice.job.micro_batch_size == 2
    assert problem.peak_bytes(choice.job) <= least <= problem.peak_bytes(problem.job(choice.setting, 1))


def test_under_pressure_saved_tensors_lose_bits_before_blocks_stop_training(photos: Path) -> None:
    """Down from where the recipe fits to where nothing does: every lever is turned, and learning never rises."""
    spec = find_spec("vit_tiny_patch16_224")
    method = with_levers(find_method("edgetune", 12), ["trained_blocks=6"], 12)
    problem = Problem(method, spec, 16, 0, 10, 100, 20, 0, None, None)
    easy = problem._replace(allocator="fast")
    top = easy.peak_bytes(easy.job(next(easy.settings()), easy.whole))
    seen, learning = [], 2.0
    for cap in range(top, 0, -top // 60):
        choice = search(problem, Limits(memory_bytes=cap))
        if choice is None:
            break
        assert problem.peak_bytes(choice.job) <= cap
        assert choice.learning <= learning
        learning = choice.learning
        seen.append(choice)
    forms = [(choice.setting.levers.saved_precision, choice.setting.levers.saved_activations) for choice in seen]
    assert forms[0] == ("int8", "full")
    assert ("int8", "recompute") in forms
    first = next(place for place, form in enumerate(forms) if form != ("int8", "full"))
    assert seen[first].setting.trained == seen[0].setting.trained
    assert seen[-1].setting.trained < seen[0].setting.trained


def test_a_lever_set_by_hand_is_not_turned() -> None:
    spec = find_spec("vit_tiny_patch16_224")
    levers = ["saved_precision=int8", "saved_activations=full", "trained_blocks=6"]
    problem = Problem(with_levers(find_method("edgetune", 12), levers, 12), spec, 16, 0, 10, 100, 20, 0, None, None)
    for cap in (20, 30, 40, 60):
        choice = search(problem, Limits(memory_bytes=cap * MIB))
        if choice is not None:
            assert choice.setting.levers == problem.method.levers
    assert all(form.levers == problem.method.levers for form in problem.thrifty(next(problem.settings())))


def test_pressure_turns_the_levers_before_giving_up(photos: Path) -> None:
    easy = make_plan(photos, model=MODEL, profile=make_profile(), engine="torch")
    most_bytes = easy.predicted.peak_memory_most_bytes or 0
    tight = make_plan(photos, model=MODEL, profile=make_profile(), memory_bytes=most_bytes - 2 * MIB, engine="torch")
    assert tight.micro_batch_size < easy.micro_batch_size
    assert tight.lowest_trainable_block == easy.lowest_trainable_block  # splitting the batch costs nothing learned


def test_infeasible_names_the_method_and_what_would_do(photos: Path) -> None:
    with pytest.raises(InfeasibleError, match=r"vit_nano_patch8_64 at 64 px .* --memory \d+MB") as caught:
        make_plan(photos, model=MODEL, profile=make_profile(), memory_bytes=100 * MIB)
    assert caught.value.exit_code == 3
    assert "nothing but the classifier trained" in str(caught.value)


def test_the_trade_off_holds_the_plan_and_nothing_that_another_beats(photos: Path, tmp_path: Path) -> None:
    for method in ("edgetune", "full", "alast", "head"):
        plan = make_plan(photos, model=MODEL, profile=make_profile(watts=4.0), method=method)
        found = plan.alternatives
        assert [point.chosen for point in found].count(True) == 1
        mine = next(point for point in found if point.chosen)
        assert mine.peak_memory_bytes == plan.predicted.peak_memory_bytes
        assert mine.total_s == pytest.approx(plan.predicted.total_s)
        assert mine.learning == 1.0
        assert [point.peak_memory_bytes for point in found] == sorted(point.peak_memory_bytes for point in found)
        others = [point for point in found if not point.chosen]
        mine_costs = (mine.peak_memory_bytes, mine.total_s, -mine.learning)
        for point in others:
            costs = (point.peak_memory_bytes, point.total_s, -point.learning)
            assert not all(left <= right for left, right in zip(mine_costs, costs, strict=True))
        figures = {(p.peak_memory_bytes, p.total_s, -p.learning) for p in others}
        assert len(figures) == len(others)
        for one in figures:
            for other in figures - {one}:
                assert not all(left <= right for left, right in zip(other, one, strict=True))
    plan = make_plan(photos, model=MODEL, profile=make_profile())
    assert len({point.trained_blocks for point in plan.alternatives}) > 2
    assert len(plan.alternatives) <= 8


def test_a_roomy_cap_on_time_is_said_to_have_room_for_more_blocks(photos: Path) -> None:
    def hint(**caps: Any) -> list[str]:
        made = make_plan(photos, model=MODEL, profile=make_profile(), **caps)
        return [sentence for sentence in made.why if "also have room" in sentence]

    assert hint() == []  # nobody said what may be spent
    (said,) = hint(time_s=24 * 3600.0)
    blocks = int(re.search(r"--lever trained_blocks=(\d+)", said)[1])
    assert 1 < blocks <= 6
    wider = make_plan(
        photos, model=MODEL, profile=make_profile(), time_s=24 * 3600.0, levers=[f"trained_blocks={blocks}"]
    )
    assert sum(block.trainable for block in wider.blocks) == blocks
    assert not any("also have room" in sentence for sentence in wider.why)
    own = make_plan(photos, model=MODEL, profile=make_profile())
    assert hint(time_s=1.2 * own.predicted.total_s) == []


def test_alternatives_beyond_a_cap_say_so(photos: Path) -> None:
    easy = make_plan(photos, model=MODEL, profile=make_profile(), engine="torch")
    cap = easy.predicted.peak_memory_most_bytes or 0
    tight = make_plan(photos, model=MODEL, profile=make_profile(), memory_bytes=cap, engine="torch")
    within = {point.peak_memory_bytes for point in tight.alternatives if point.within_caps}
    beyond = {point.peak_memory_bytes for point in tight.alternatives if not point.within_caps}
    assert within
    assert beyond
    assert max(within) < min(beyond)
    assert max(within) < cap


@pytest.mark.parametrize("cap", ["energy_j", "time_s"])
def test_time_and_energy_caps_shorten_the_run_first(photos: Path, cap: str) -> None:
    profile = make_profile(watts=4.0, gflops=5.0)
    free = make_plan(photos, model=MODEL, profile=profile, epochs=50)
    whole = {"energy_j": free.predicted.total_energy_j, "time_s": free.predicted.total_s}[cap]
    assert whole is not None
    plan = make_plan(photos, model=MODEL, profile=profile, epochs=50, **{cap: 0.7 * whole})  # type: ignore[arg-type]
    fewer_blocks = plan.lowest_trainable_block > free.lowest_trainable_block
    assert plan.total_steps < free.total_steps or plan.k < free.k or fewer_blocks
    spent = {"energy_j": plan.predicted.total_energy_j, "time_s": plan.predicted.total_s}[cap]
    assert spent is not None
    assert spent <= 0.7 * whole
    assert plan.wanted_epochs == free.epochs == free.wanted_epochs
    assert plan.recipe.warmup_steps <= plan.total_steps <= plan.epochs * plan.steps_per_epoch
    assert plan.total_steps > (plan.epochs - 1) * plan.steps_per_epoch
    assert any("the schedule ends where the cap does" in sentence for sentence in plan.why) or fewer_blocks


@pytest.mark.parametrize("method", ["edgetune", "full"])
@pytest.mark.parametrize("cap", ["energy_j", "time_s"])
def test_infeasible_time_and_energy_name_a_cap_that_is_feasible(photos: Path, cap: str, method: str) -> None:
    profile = make_profile(watts=4.0)
    with pytest.raises(InfeasibleError) as caught:
        make_plan(photos, model=MODEL, profile=profile, method=method, **{cap: 0.5})  # type: ignore[arg-type]
    nearest = getattr(caught.value.nearest, cap)
    assert nearest is not None
    plan = make_plan(photos, model=MODEL, profile=profile, method=method, **{cap: nearest})
    assert (plan.epochs, plan.total_steps) == (1, 1)
    assert {"energy_j": "--energy ", "time_s": "--time "}[cap] in str(caught.value)
    assert f"{1 / plan.steps_per_epoch:.2g} instead of 10 epochs" in str(caught.value)
    with pytest.raises(InfeasibleError):
        make_plan(photos, model=MODEL, profile=profile, method=method, **{cap: 0.999 * nearest})


def test_a_cap_with_room_for_a_part_of_an_epoch_gives_a_plan(photos: Path) -> None:
    profile = make_profile(watts=4.0, gflops=2.0)
    options: dict[str, Any] = {"model": MODEL, "profile": profile, "method": "full", "batch_size": 1, "engine": "torch"}
    once = make_plan(photos, epochs=1, **options).predicted
    assert once.epoch_s is not None
    with pytest.raises(InfeasibleError) as caught:
        make_plan(photos, time_s=1.0, **options)
    nearest_s = caught.value.nearest.time_s
    assert nearest_s is not None
    least = make_plan(photos, time_s=nearest_s, **options)
    assert (least.epochs, least.total_steps, least.steps_per_epoch) == (1, 4, 40)
    plan = make_plan(photos, time_s=nearest_s + 0.3 * once.epoch_s, **options)
    assert plan.epochs == 1
    assert 15 <= plan.total_steps <= 16
    assert any("0.4 epochs of 40 images are" in sentence or "0.3 epochs" in sentence for sentence in plan.why)
    out = io.StringIO()
    print_plan(plan, Console(file=out, width=80))
    assert f"{plan.total_steps} steps of an epoch's 40" in " ".join(out.getvalue().split())


def test_nearest_holds_the_other_caps(photos: Path) -> None:
    profile = make_profile(watts=4.0)
    with pytest.raises(InfeasibleError) as caught:
        make_plan(photos, model=MODEL, profile=profile, memory_bytes=100 * MIB, time_s=0.5)
    # neither alone would help: both fail whatever the other is
    assert caught.value.nearest == schema.NearestFeasible(too_small=["memory_bytes", "time_s"])
    said = str(caught.value)
    assert "(memory and time fail by themselves)" in said
    assert "whatever the others are, it takes --memory " in said
    caps = re.search(r"together --memory (\d+)MB --time ([\d.]+)s would do", said)
    assert caps is not None, said
    enough = {"memory_bytes": int(caps[1]) * 10**6, "time_s": float(caps[2])}
    assert make_plan(photos, model=MODEL, profile=profile, **enough).epochs == 1  # type: ignore[arg-type]


@pytest.mark.parametrize(("cap", "kind"), [("energy_j", "energy"), ("time_s", "time")])
def test_the_cap_that_fails_is_named(photos: Path, cap: str, kind: str) -> None:
    others = {"memory_bytes": 4096 * MIB, "energy_j": 1e6, "time_s": 1e6}
    with pytest.raises(InfeasibleError, match=rf" \({kind} fails by itself\): the least ") as caught:
        make_plan(photos, model=MODEL, profile=make_profile(watts=4.0), **(others | {cap: 0.5}))  # type: ignore[arg-type]
    assert caught.value.nearest.too_small == [cap]


def test_caps_that_fail_only_together_say_so(photos: Path) -> None:
    """The least memory is slow, and the shortest run needs more."""
    problem = Problem(find_method("full", 6), find_spec(MODEL), 32, 0, 1, 24, 6, 0, Rates(make_profile().compute), None)
    small = nearest_feasible(problem, [Limits(memory_bytes=1)])[0].memory_bytes
    quick = nearest_feasible(problem, [Limits(time_s=1e-6)])[0].time_s
    assert small is not None
    assert quick is not None
    limits = Limits(memory_bytes=small, time_s=quick)
    assert search(problem, limits) is None
    error = infeasible([problem], limits)
    assert error.nearest.too_small == []
    assert " together: the least that would do is --memory " in str(error)


def test_energy_without_any_watts_asks_for_power(photos: Path) -> None:
    with pytest.raises(InputError, match="--power"):
        make_plan(photos, model=MODEL, profile=make_profile(), energy_j=1000.0)
    plan = make_plan(photos, model=MODEL, profile=make_profile(), energy_j=1e6, power_w=5.0)
    assert plan.caps.energy_j == 1e6


def test_default_cap_is_nine_tenths_of_what_may_be_used(photos: Path) -> None:
    plan = make_plan(photos, model=MODEL, profile=make_profile(available_bytes=1_000_000_000))
    assert plan.caps.memory_bytes == 900_000_000
    assert plan.caps.memory_source is not None
    assert plan.predicted.peak_memory_bytes <= 900_000_000


def test_without_a_profile_it_says_that_it_guesses(photos: Path) -> None:
    plan = make_plan(photos, model=MODEL, memory_bytes=4 << 30)
    assert plan.predicted.epoch_s is None
    assert plan.predicted.total_energy_j is None
    assert any("guess" in warning for warning in plan.warnings)


def test_small_data_shrinks_the_batch_and_says_so(photos: Path) -> None:
    plan = make_plan(photos, model=MODEL, profile=make_profile(), batch_size=64)
    assert plan.batch_size == 40
    assert any("64 were wanted" in sentence for sentence in plan.why)


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"epochs": 0}, "--epochs"),
        ({"batch_size": 0}, "--batch-size"),
        ({"lr": -1.0}, "--lr"),
        ({"lr": float("nan")}, "--lr"),
        ({"threads": 0}, "--threads"),
        ({"workers": -1}, "--workers"),
        ({"engine": "tflite"}, "--engine"),
        ({"device": "tpu"}, "--device"),
        ({"method": "mezo"}, "--method"),
        ({"image_size": 65}, "--image-size"),
        ({"model": "resnet50"}, "--model"),
    ],
)
def test_bad_options_are_named(photos: Path, options: dict[str, object], flag: str) -> None:
    with pytest.raises(InputError, match=flag):
        make_plan(photos, **{"model": MODEL, "profile": make_profile(), **options})  # type: ignore[arg-type]


def test_reference_alast_takes_its_alpha_from_the_rate(photos: Path) -> None:
    plan = make_plan(photos, model=MODEL, profile=make_profile(), method="alast", lr=3e-4)
    assert plan.alast is not None
    assert plan.alast.alpha == plan.recipe.learning_rate == 3e-4
    assert [block.keep_min_tokens for block in plan.blocks] == [32, 16, 8, 4, 2, 1]
    assert [block.keep_max_tokens for block in plan.blocks] == [64] * 6


def test_micro_batches_split_evenly() -> None:
    assert micro_batches(32) == (1, 2, 3, 4, 5, 6, 7, 8, 11, 16, 32)
    for size in range(1, 200):
        assert micro_batches(size) == tuple(sorted({-(-size // parts) for parts in range(1, size + 1)}))


def test_planning_is_quick_and_imports_neither_torch_nor_numpy(photos: Path) -> None:
    script = (
        "import sys, edgetune.plan\n"
        f"plan = edgetune.plan.make_plan({str(photos)!r}, model='vit_large_patch16_224', memory_bytes=2 << 30)\n"
        "print([name for name in ('torch', 'numpy', 'PIL') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_the_search_takes_under_a_second_of_a_slow_core() -> None:
    from edgetune.model.registry import find_spec

    spec = find_spec("vit_large_patch16_384")
    rates = make_profile().compute
    from edgetune.plan.rates import Rates

    problem = Problem(find_method("edgetune", 24), spec, 32, 0, 10, 1000, 100, 0, Rates(rates), 5.0)
    began = time.process_time()
    choice = search(problem, Limits(memory_bytes=3 << 30, energy_j=5e5))
    nearest = nearest_feasible(problem, [Limits(memory_bytes=1 << 30)])[0]
    spent = time.process_time() - began
    assert choice is not None or nearest.memory_bytes is not None
    assert spent < 0.5 * slowness()


def test_the_json_of_a_plan_has_the_names_of_the_contract(photos: Path) -> None:
    plan = json.loads(schema.to_json(make_plan(photos, model=MODEL, profile=make_profile())))
    assert plan["schema"] == "edgetune/plan/1"
    names = {"runtime", "weights", "gradients", "optimizer", "activations", "workspace", "data"}
    assert set(plan["predicted"]["memory"]) == names
    assert set(plan["blocks"][0]) == {"index", "trainable", "keep_max_tokens", "keep_min_tokens", "recomputed"}
    assert msgspec.json.decode(json.dumps(plan).encode(), type=Plan).k == plan["k"]
