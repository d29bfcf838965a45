"""Medians, ratios and tables, in round numbers."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from edgetune.bench.page import markdown, print_bench
from edgetune.bench.records import Bench, CurvePoint, Entry, Figures, MethodRow, Run, Spread
from edgetune.bench.summary import summarise
from tests.bench.facts import HERE, SETTINGS, make_run


def summary(runs: list[Run], repetitions: int = 3) -> Bench:
    names = list(dict.fromkeys(run.entry.name for run in runs))
    return summarise(SETTINGS, [Entry(name=name, method=name) for name in names], runs, repetitions)


def row(bench: Bench, name: str) -> MethodRow:
    return next(row for row in bench.methods if row.entry.name == name)


def three(name: str, peaks: tuple[int, int, int], epochs: tuple[float, float, float], later: float = 2.0) -> list[Run]:
    return [
        make_run(name, repetition, peak_bytes=100 + peak, epochs_s=[2 * first - later, later])
        for repetition, (peak, first) in enumerate(zip(peaks, epochs, strict=True))
    ]


EAGER = [
    *three("eager-full", (800, 900, 850), (4.0, 4.2, 3.0), later=4.0),
    *three("eager-full-trimmed", (600, 610, 400), (6.0, 8.0, 6.5), later=5.0),
]


def test_epochs_are_told_apart() -> None:
    figures = make_run("full", epochs_s=[9.0, 1.0, 2.0]).figures
    assert isinstance(figures, Figures)
    assert (figures.epoch_s, figures.first_epoch_s, figures.later_epoch_s) == (4.0, 9.0, 1.5)
    assert make_run("full", epochs_s=[9.0]).figures.later_epoch_s is None
    assert figures.above_baseline_bytes == 200
    assert make_run("full", peak_bytes=None).figures.above_baseline_bytes is None


def test_medians_and_spread() -> None:
    assert Spread.of([3, 1, 2]) == Spread(median=2, low=1, high=3, values=[3, 1, 2])
    assert Spread.of([1, 2]).median == 1.5
    assert Spread.of([]) is None
    assert Spread.of([1, None]) is None


def test_memory_is_held_against_the_leaner_and_time_against_the_faster_eager_variant() -> None:
    bench = summary([*EAGER, *three("full", (300, 200, 100), (2.0, 1.0, 3.0))])
    assert (bench.memory_baseline, bench.time_baseline) == ("eager-full-trimmed", "eager-full")
    ratios = row(bench, "full").to_eager
    assert ratios.above_baseline == pytest.approx(200 / 610)
    assert ratios.epoch == pytest.approx(2.0 / 4.0)
    assert ratios.later_epoch == pytest.approx(2.0 / 4.0)
    assert row(bench, "eager-full").to_eager.above_baseline == pytest.approx(900 / 610)
    assert row(bench, "eager-full-trimmed").to_eager.epoch == pytest.approx(8.0 / 4.2)
    assert row(bench, "full").to_alast is None


def test_ratios_are_formed_within_a_repetition() -> None:
    """A machine that is three times slower on the second day is so for both methods."""
    eager = three("eager-full", (800, 800, 800), (1.0, 3.0, 3.0), later=1.0)
    bench = summary([*three("full", (400, 400, 400), (0.5, 0.5, 1.8), later=0.5), *reversed(eager)])
    assert row(bench, "full").ended_well == [0, 1, 2]
    assert row(bench, "full").to_eager.epoch == pytest.approx(0.5)  # of 0.5, 0.17 and 0.6; of medians: 0.17
    failed = summary([*eager[1:], make_run("full", 0, epochs_s=[1.0])])
    assert row(failed, "full").to_eager.epoch == pytest.approx(1.0 / 3.0)  # no repetition in common
    assert row(failed, "full").by(None, "epoch_s") is None
    gap = summary([*eager, *three("full", (400, 400, 400), (0.5, 0.5, 1.8), later=0.5)[1:]])
    assert row(gap, "full").to_eager.epoch == pytest.approx((0.5 / 3 + 0.6) / 2)
    old = msgspec.structs.replace(row(bench, "full"), ended_well=[])  # as an earlier version wrote it
    assert old.by(row(bench, "eager-full"), "epoch_s") == pytest.approx(0.5 / 3.0)


def test_a_repetition_in_which_the_other_needed_nothing_is_left_out() -> None:
    bench = summary([*three("head", (0, 50, 50), (1.0, 1.0, 1.0)), *three("full", (100, 100, 200), (1.0, 1.0, 1.0))])
    assert row(bench, "full").by(row(bench, "head"), "above_baseline_bytes") == 3.0
    none = summary([*three("head", (0, 0, 0), (1.0, 1.0, 1.0)), *three("full", (1, 1, 1), (1.0, 1.0, 1.0))])
    assert row(none, "full").by(row(none, "head"), "above_baseline_bytes") is None


def test_the_reference_method_is_a_measure_of_its_own() -> None:
    bench = summary(
        [*three("alast", (400, 400, 400), (2.0, 2.0, 2.0), 2.0), *three("edgetune", (100,) * 3, (1.0,) * 3, 0.5)]
    )
    ratios = row(bench, "edgetune").to_alast
    assert (ratios.above_baseline, ratios.epoch, ratios.later_epoch) == (0.25, 0.5, 0.25)
    assert row(bench, "edgetune").to_eager is None
    assert bench.memory_baseline is None


def test_failed_runs_are_counted_and_leave_the_rest_whole() -> None:
    bench = summary([*EAGER[:2], make_run("eager-full", 2, error="killed by signal 9")])
    found = row(bench, "eager-full")
    assert (found.runs, found.errors) == (2, ["killed by signal 9"])
    assert found.above_baseline_bytes.values == [800, 900]
    assert any("killed by signal 9" in warning for warning in bench.warnings)
    nothing = summary([make_run("full", error="no")])
    assert row(nothing, "full").epoch_s is None
    assert "—" in markdown(nothing)


def test_a_memory_that_could_not_be_measured_gives_no_ratio() -> None:
    bench = summary([make_run("eager-full", peak_bytes=None), make_run("full")])
    assert bench.memory_baseline is None
    assert row(bench, "full").to_eager.above_baseline is None
    assert row(bench, "full").to_eager.epoch == 1.0


def test_who_else_used_the_machine_is_said() -> None:
    crowded = msgspec.structs.replace(make_run("full"), others_share=0.6)
    assert any("60%" in warning for warning in summary([crowded]).warnings)
    there = msgspec.structs.replace(HERE, kernel="7")
    elsewhere = msgspec.structs.replace(make_run("head"), machine=there)
    bench = summary([make_run("full"), elsewhere])
    assert len(bench.machines) == 2
    assert any("different machines" in warning for warning in bench.warnings)
    later = [msgspec.structs.replace(make_run(name, 1), machine=there) for name in ("full", "head")]
    apart = summary([make_run("full"), make_run("head"), *later], repetitions=2)
    assert [warning.split(" are of")[0] for warning in apart.warnings] == ["repetitions"]
    hot = msgspec.structs.replace(make_run("full"), throttled=True)
    assert any("throttled" in warning for warning in summary([hot]).warnings)
    assert summary([make_run("full")]).warnings == []


def test_joules_are_gross_net_and_marked_where_a_model_gave_them() -> None:
    measured: dict[str, Any] = {"epochs_j": [30.0, 10.0, 20.0], "energy_source": "ina3221", "energy_scope": "module"}
    run = make_run("full", energy_measured=True, **measured)  # 3, 1 and 2 s
    bench = summary([msgspec.structs.replace(run, idle_w=4.0)])
    found = row(bench, "full")
    assert found.epoch_j.median == 20.0
    assert found.net_epoch_j.median == 20.0 - 4.0 * 2.0
    assert (found.energy_measured, bench.idle_w.median) == (True, 4.0)
    assert " 20*" not in markdown(bench)
    modelled = summary([make_run("full", energy_measured=False, **measured)])
    assert row(modelled, "full").net_epoch_j is None
    assert " 20* " in markdown(modelled)
    assert any("modelled" in warning for warning in modelled.warnings)
    unknown = summary([make_run("full", epochs_j=[30.0, None, 20.0])])
    assert row(unknown, "full").epoch_j is None
    assert "No joules" in markdown(unknown)


def test_joules_of_different_things_are_neither_pooled_nor_divided() -> None:
    def told(name: str, repetition: int, scope: str) -> Run:
        energy: dict[str, Any] = {"epochs_j": [30.0, 10.0, 20.0], "energy_source": f"of {scope}", "energy_scope": scope}
        return make_run(name, repetition, energy_measured=True, **energy)

    mixed = summary([told("full", 0, "module"), told("full", 1, "gpu")], repetitions=2)
    assert row(mixed, "full").epoch_j is None
    assert row(mixed, "full").energy_source == "of module and of gpu"
    assert any("different sources" in warning for warning in mixed.warnings)
    assert "differ in their source" in markdown(mixed)
    assert all(reach.joules is None for reach in row(mixed, "full").reach)
    apart = summary([told("eager-full", 0, "module"), told("full", 0, "gpu")])
    assert row(apart, "full").epoch_j.median == 20.0
    assert row(apart, "full").to_eager.epoch_j is None
    alike = summary([told("eager-full", 0, "gpu"), told("full", 0, "gpu")])
    assert row(alike, "full").to_eager.epoch_j == 1.0


def test_the_share_of_the_machine_is_of_its_rate_just_then() -> None:
    run = msgspec.structs.replace(make_run("full"), gemm_flops=100e9)  # 300 images of 1 GFLOP in 6 s
    assert row(summary([run]), "full").gemm_share.median == pytest.approx(0.5)
    assert row(summary([make_run("full")]), "full").gemm_share is None
    slowed = msgspec.structs.replace(run, gemm_flops=10e9, gemm_after_flops=100e9)  # by others, just before
    assert row(summary([slowed]), "full").gemm_share.median == pytest.approx(0.5)
    assert summary([slowed]).gemm_flops.median == 100e9
    assert summary([slowed], 1).warnings == []
    impossible = summary([msgspec.structs.replace(run, gemm_flops=10e9)], 1)
    assert [warning.split(" made")[0] for warning in impossible.warnings] == ["full: a run"]


def test_runs_of_a_repetition_that_are_days_apart_are_no_neighbours() -> None:
    first, late = make_run("full"), msgspec.structs.replace(make_run("head"), created="2026-01-02T00:00:00+00:00")
    said = summary([first, late], 1).warnings
    assert said == ["runs of repetition 0 were made over 24.0 hours: its ratios are of a machine at different hours."]
    next_day = msgspec.structs.replace(late, repetition=1)
    assert summary([first, next_day], 2).warnings == []


def test_who_trained_on_plain_images_is_said() -> None:
    mixed = summary([make_run("full", augmented=True), make_run("edgetune", augmented=False)], 1)
    assert "Trained on plain images, since their features are cached: `edgetune`; the others" in markdown(mixed)
    for augmented in (True, False, None):
        alike = summary([make_run(name, augmented=augmented) for name in ("full", "edgetune")], 1)
        assert "plain images" not in markdown(alike)


def a_course(*points: tuple[int, float, float, float]) -> list[CurvePoint]:
    return [CurvePoint(step=step, accuracy=right, train_s=s, train_j=j) for step, right, s, j in points]


def test_what_it_took_to_come_to_shares_of_full() -> None:
    joules: dict[str, Any] = {"epochs_j": [2.0, 2.0, 2.0], "energy_measured": True}
    runs = [
        make_run("eager-full", accuracy=0.8, curve=a_course((20, 0.4, 2.0, 20.0), (40, 0.79, 4.0, 40.0)), **joules),
        make_run("full", 0, accuracy=0.77, curve=a_course((20, 0.77, 1.0, 10.0), (40, 0.5, 2.0, 20.0)), **joules),
        make_run("full", 1, accuracy=0.9, curve=a_course((20, 0.1, 1.0, 10.0), (40, 0.795, 3.0, 30.0)), **joules),
        make_run("head", accuracy=0.3, curve=a_course((20, 0.2, 1.0, 10.0)), **joules),
    ]
    settings = msgspec.structs.replace(SETTINGS, evaluate_steps=20)
    entries = [Entry(name=name, method=name) for name in ("eager-full", "full", "head")]
    bench = summarise(settings, entries, runs, 2)
    assert (bench.full_accuracy, bench.full_accuracy_of) == (0.8, "eager-full")
    to_95, to_99, to_100 = row(bench, "eager-full").reach
    assert (to_95.seconds.median, to_95.joules.median) == (4.0, 40.0)
    assert to_100.seconds.median == 6.0  # the end of the last epoch is a point too
    to_95, to_99, to_100 = row(bench, "full").reach
    assert (to_95.reached, to_95.seconds.median) == (2, 2.0)
    assert (to_99.reached, to_99.seconds) == (1, None)
    assert [reach.reached for reach in row(bench, "head").reach] == [0, 0, 0]
    written = markdown(bench)
    assert "1 of 2" in written
    assert "not reached" in written


def test_the_record_survives_its_file() -> None:
    bench = summary(EAGER)
    raw = msgspec.json.encode(bench)
    assert msgspec.json.decode(raw)["schema"] == "edgetune/bench/1"
    assert msgspec.json.decode(raw, type=Bench) == bench


def test_tables_fit_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    large = [
        make_run(name, repetition, peak_bytes=(1234 << 20) + repetition, epochs_s=[1234.5, 1000.25 + repetition, 999.0])
        for name in ("eager-full", "eager-full-trimmed", "eager-full-fused", "edgetune")
        for repetition in range(3)
    ]
    bench = summary(large)
    text = markdown(bench)
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert len(tables) == 3 * (2 + 4) + 2 + 3
    assert max(map(len, tables)) <= 80
    assert len({line.count("|") for line in tables[:6]}) == 1
    assert "1234" in text
    print_bench(bench)
    printed = capsys.readouterr().out
    assert "eager-full-trimmed" in printed
    assert "…" not in printed
