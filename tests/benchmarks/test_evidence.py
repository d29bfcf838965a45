"""The scripts behind the promises on memory, caps and learning: their draws, their plans and their sums.

What they measure takes hours. Here are the parts that have one right answer: which plans a number stands for, that the
planner takes them, what a cap of exactly the smallest feasible size means, and what the tables make of given lines.
"""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import machine
import pytest

from benchmarks import budget_accuracy, budgets, caps_held, learning, predict_memory
from benchmarks.workloads import prepare_synthetic
from edgetune.data.folder import scan
from edgetune.errors import InfeasibleError
from edgetune.plan import make_plan
from edgetune.plan.job import job_of
from edgetune.plan.search import learning as expected_learning

NANO = "vit_nano_patch8_64"


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(machine, "RESULTS", tmp_path)
    monkeypatch.setattr(machine, "machine", dict)
    return tmp_path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    prepare_synthetic(folder, train=4 * predict_memory.CLASSES, val=predict_memory.CLASSES, side=32)
    return folder


def write(results: Path, name: str, found: list[dict[str, Any]]) -> None:
    (results / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in found))


def planned(case: Any, data: Path, **caps: Any) -> Any:
    return make_plan(
        data,
        model=NANO,
        image_size=predict_memory.SIZES[NANO][1],
        batch_size=case.batch_size,
        method=case.method,
        levers=list(case.levers),
        engine="torch",
        epochs=2,
        workers=0,
        threads=1,
        **caps,
    )


def drawn_levers(count: int) -> list[predict_memory.Case]:
    """Cases whose levers any depth can take, for the smallest model."""
    cases = [predict_memory.draw("held-out-7", number) for number in range(60)]
    return [case for case in cases if case.model == NANO][:count]


def test_memory_draws_are_repeatable_cover_every_lever_and_are_no_earlier_series() -> None:
    cases = [predict_memory.draw("held-out-7", number) for number in range(200)]
    assert cases == [predict_memory.draw("held-out-7", number) for number in range(200)]
    assert not set(cases) & {predict_memory.draw("design", number) for number in range(200)}
    assert {case.model for case in cases} == set(predict_memory.SIZES)
    batches = {case.batch_size for case in cases}
    assert min(batches) == 1
    assert 48 < max(batches) <= 64
    pulled = {tuple(lever.split("=")) for case in cases for lever in case.levers}
    assert {(name, value) for name, values in predict_memory.LEVERS.items() for value in values} <= pulled


@pytest.mark.parametrize("case", drawn_levers(6), ids=lambda case: f"{case.method}-{case.batch_size}")
def test_a_drawn_plan_at_its_smallest_cap_is_tight(case: predict_memory.Case, photos: Path) -> None:
    """The bill adds up to the peak, the smallest feasible cap is feasible, and a byte less is refused by that figure."""
    plan = planned(case, photos)
    assert plan.predicted.peak_memory_bytes == plan.predicted.memory.total
    with pytest.raises(InfeasibleError) as refused:
        planned(case, photos, memory_bytes=1)
    smallest = refused.value.nearest.memory_bytes
    tight = planned(case, photos, memory_bytes=smallest)
    assert tight.predicted.peak_memory_most_bytes <= smallest
    with pytest.raises(InfeasibleError) as refused:
        planned(case, photos, memory_bytes=smallest - 1)
    assert refused.value.nearest.memory_bytes == smallest


def test_caps_are_drawn_between_once_and_twice_the_smallest() -> None:
    drawn = [caps_held.draw_case("caps-2", number) for number in range(100)]
    assert all(1 <= multiple <= 2 for _, multiple in drawn)
    assert [multiple for _, multiple in drawn[::8]] == [1.0] * 13
    large = {name for name, _, _ in caps_held._LARGE}
    assert {case.model for case, _ in drawn[1::2]} == large  # half of them of W1's and W3's size


def test_the_table_of_caps_counts_every_run_that_is_not_as_it_should_be(results, capsys) -> None:
    line: dict[str, Any] = {
        "case": "nano",
        "multiple": 1.0,
        "cap_bytes": 100,
        "group": 1,
        "kills": 0,
        "exit": 0,
        "stderr": "",
        "checkpoint": True,
        "measured_peak_bytes": 90,
        "measured_above_baseline_bytes": 45,
        "predicted_above_baseline_bytes": 50,
        "events": [],
        "quiet": True,
        "step_s": 1.05,
        "free_step_s": 1.0,
    }
    bad: list[dict[str, Any]] = [
        {"kills": 1, "exit": -9, "checkpoint": False},
        {"measured_peak_bytes": 101, "events": ["tightened"]},
    ]
    write(results, "caps_held", [line | {"number": 0}, *(line | {"number": at} | it for at, it in enumerate(bad, 1))])
    caps_held.table("caps")
    said = capsys.readouterr().out
    assert "| killed | 1 |" in said
    assert "| ended with a checkpoint and exit code 0 or 4 | 2 |" in said
    assert "| measured peak above the cap | 1 |" in said
    assert "| tightened by the governor | 1 |" in said
    assert "| 0.90 median, 0.90 lowest of 3 |" in said
    assert said.count("\n- ") == 2


@pytest.mark.parametrize("workload", ["fashion", "digits"])
def test_what_a_plan_is_expected_to_learn_lies_between_nothing_and_everything(workload: str, photos: Path) -> None:
    for number in range(20, 28):
        method, levers, epochs = learning.draw(workload, number)
        assert (method, levers, epochs) == learning.draw(workload, number)
        job = job_of(planned(Namespace(batch_size=4, method=method, levers=levers), photos))

        def expected(epochs: int, job: Any = job) -> float:
            return float(expected_learning(job, epochs, most_trained=6, wanted_epochs=learning.MOST_EPOCHS))

        assert 0 < expected(epochs) <= 1
        assert expected(1) < expected(learning.MOST_EPOCHS)


def test_ranks_are_correlated_and_equals_share_theirs(results, capsys) -> None:
    assert learning.ranks([3.0, 1.0, 3.0]).tolist() == [1.5, 0.0, 1.5]
    assert learning.spearman([1, 2, 3, 4], [10, 20, 30, 400]) == pytest.approx(1)
    assert learning.spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    found = [{"workload": "fashion", "number": 20 + at, "learning": at, "accuracy": -at} for at in range(4)]
    found += [{"workload": "fashion", "number": at, "learning": at, "accuracy": at} for at in range(3)]
    found += [{"workload": "fashion", "number": 20 + at, "learning": at, "accuracy": at, "lr": None} for at in range(3)]
    write(results, "learning", found)
    learning.table()
    said = capsys.readouterr().out
    assert "| fashion | 0.001 | 4 | -1.00 | 1.00 |" in said
    assert "| fashion | each its default | 3 | 1.00 |  |" in said


def test_every_method_gets_its_share_of_what_the_whole_run_took(results, tmp_path, monkeypatch, capsys) -> None:
    asked: list[list[str]] = []

    def fit(workload, data, weights, words, threads):
        asked.append(words)
        return {"accuracy": 0.5 + 0.01 * len(asked), "total_s": 100.0, "stopped_by": "time", "images": 1500}

    monkeypatch.setattr(budget_accuracy, "fit", fit)
    monkeypatch.setattr(budget_accuracy, "tune_means", lambda workload, method: method.name != "lora")
    monkeypatch.setattr(budget_accuracy, "chosen_rate", lambda workload, method: 0.002)
    options = Namespace(workload="fashion", data=tmp_path, weights=None, seeds=1, threads=1)
    budget_accuracy.run(options)
    times = [words[words.index("--time") + 1] for words in asked[1:]]
    assert times == [f"{share}s" for share in ("10.0", "20.0", "40.0", "80.0") for _ in budget_accuracy.METHODS]
    for words in asked:
        assert "lora" in words or words[words.index("--lr") + 1] == "0.002"
    assert not any("--lr" in words for words in asked if "lora" in words)  # no grid was run
    assert sum("trained_blocks=4" in words for words in asked) == len(budget_accuracy.SHARES)
    count = len(asked)
    budget_accuracy.run(options)
    assert len(asked) == count  # everything has its line
    budget_accuracy.table("fashion")
    said = capsys.readouterr().out
    assert "52.0 (52.0 to 52.0); 1.5k | 58.0" in next(row for row in said.splitlines() if "`edgetune`" in row)


def test_a_run_validates_on_few_images_and_is_judged_by_all(tmp_path) -> None:
    for part, count in (("train", 3), ("val", 60)):
        for name in ("cat", "dog"):
            (tmp_path / "data" / part / name).mkdir(parents=True)
            for index in range(count):
                (tmp_path / "data" / part / name / f"{index:02d}.png").touch()
    few = scan(budget_accuracy.few_to_validate(tmp_path / "data", tmp_path / "few"))
    assert (len(few.train), len(few.val)) == (6, 100)
    assert [sample.path.rsplit("/", 1)[1] for sample in few.val[:2]] == ["00.png", "01.png"]


def test_a_run_that_its_cap_did_not_let_begin_is_told_from_one_that_learned_nothing() -> None:
    cell: list[dict[str, Any]] = [{"accuracy": None}, {"accuracy": 0.2}]
    assert budget_accuracy._accuracy(cell) == "20.0 (20.0 to 20.0) and 1 not begun"
    assert budget_accuracy._accuracy(cell[:1]) == "not begun"


def test_a_budget_that_was_missed_is_named(results, capsys) -> None:
    line: dict[str, Any] = {"method": "full", "kind": "energy_j", "limit": 100.0, "truth_j": 97.0, "checkpoint": True}
    spent = [{"number": 50, "spent": 95.0}, {"number": 51, "spent": 101.0}, {"number": 3, "spent": 500.0}]
    write(results, "budgets", [line | {"evaluated": True} | it for it in spent])
    budgets.table(50)
    said = capsys.readouterr().out
    assert "| energy, as `fit` counted it | 2 | 95.0% | 98.0% | 101.0% | 1 | 2 |" in said
    assert "- 51: full, energy_j 100: 101.0%" in said
    assert "500" not in said
