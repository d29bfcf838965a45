"""The parity benchmark's choices and statistics; the training itself is stood in for."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import machine
import numpy as np
import pytest

from benchmarks import parity

FULL = parity.Method("full", "full")
LEAN = parity.Method("lean", "edgetune", ("--disk", "0"))


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "RESULTS", tmp_path)
    monkeypatch.setattr(machine, "machine", dict)
    return tmp_path / "parity.jsonl"


@pytest.fixture
def setting(tmp_path):
    return parity.Setting("fashion", tmp_path / "data", None, tmp_path, tmp_path / "scratch", False, False)


@pytest.fixture
def started(results, setting, monkeypatch):
    """Commands that were run, by a stand-in whose accuracy is best at 4e-4 for `full`, at 6.4e-3 for others."""
    commands: list[list[str]] = []

    def run(arguments, check, cwd, env):
        assert not check
        assert cwd == setting.code
        assert env["PYTHONPATH"] == str(setting.code)
        commands.append(arguments)
        lr, seed = (float(arguments[arguments.index(flag) + 1]) for flag in ("--lr", "--seed"))
        best = 4e-4 if arguments[arguments.index("--method") + 1] == "full" else 6.4e-3
        out = Path(arguments[arguments.index("--out") + 1])
        out.mkdir(parents=True)
        diverged = lr > 0.05
        result = {
            "stopped_by": "nan" if diverged else "epochs",
            "accuracy": {"last": 0.8 - 0.01 * abs(math.log2(lr / best)) + 0.001 * seed},
            "work": {"images": 15000, "train_flops": 1},
            "time": {"epochs_s": [2.0, 1.0, 1.0], "total_s": 5.0},
            "memory": {"measured_peak_bytes": 2, "baseline_bytes": 1},
        }
        (out / "result.json").write_text(json.dumps(result))
        return SimpleNamespace(returncode=2 if diverged else 0)

    monkeypatch.setattr(parity, "commit_of", lambda code: "abc")
    monkeypatch.setattr("subprocess.run", run)
    return commands


def test_the_interval_covers_the_true_mean_as_often_as_it_says():
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(200):
        low, high = parity.bootstrap_interval(rng.normal(0.5, 1, 30).tolist(), resamples=500)
        covered += low <= 0.5 <= high
    assert 0.88 <= covered / 200 <= 0.985


def test_the_interval_is_that_of_a_mean():
    values = np.random.default_rng(1).normal(-0.3, 0.6, 200)
    low, high = parity.bootstrap_interval(values.tolist())
    error = values.std() / math.sqrt(200)
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)
    assert (low, high) == parity.bootstrap_interval(values.tolist())


def test_a_grid_goes_on_where_it_was_cut_off(started, setting, results):
    parity.grid([FULL], setting, list(parity.GRID), seeds=2)
    assert len(started) == 10
    kept = results.read_text().splitlines()
    results.write_text("\n".join(kept[:7]) + "\n")
    started.clear()
    parity.grid([FULL], setting, list(parity.GRID), seeds=2)
    assert len(started) == 3
    assert parity.chosen_rate("fashion", FULL) == 4e-4


def test_a_grid_grows_until_its_best_rate_is_inside(started, setting):
    parity.grid([LEAN], setting, list(parity.GRID), seeds=1)
    assert sorted(parity.tune_means("fashion", LEAN)) == [*parity.GRID, 3.2e-3, 6.4e-3, 12.8e-3]
    assert parity.chosen_rate("fashion", LEAN) == 6.4e-3


def test_seeds_are_interleaved_and_each_method_has_its_rate(started, setting):
    parity.grid([FULL, LEAN], setting, list(parity.GRID), seeds=1)
    started.clear()
    parity.run_seeds([FULL, LEAN], setting, seeds=2)
    flags = [tuple(command[command.index(flag) + 1] for flag in ("--method", "--lr", "--seed")) for command in started]
    assert flags == [
        ("full", "0.0004", "0"),
        ("edgetune", "0.0064", "0"),
        ("full", "0.0004", "1"),
        ("edgetune", "0.0064", "1"),
    ]


def test_lines_name_no_folder_of_the_machine(started, setting, results, tmp_path):
    parity.grid([LEAN], setting, [1e-4, 6.4e-3, 1e-1], seeds=1)
    parity.run_seeds([LEAN], setting, seeds=1)
    assert str(tmp_path) not in results.read_text()
    assert str(tmp_path / "data" / "fashion") in started[-1]
    assert str(tmp_path / "data" / "fashion-tune") in started[0]
    assert not list((tmp_path / "scratch").iterdir())


def test_another_commit_counts_unless_told_otherwise(started, setting, monkeypatch):
    run = parity.Run("fashion", "final", "full", (), 4e-4, 0)
    parity.ensure(run, FULL, setting)
    monkeypatch.setattr(parity, "commit_of", lambda code: "def")
    parity.ensure(run, FULL, setting)
    assert len(started) == 1
    for _ in range(2):
        parity.ensure(run, FULL, setting._replace(this_commit=True))
    assert len(started) == 2


def test_a_rate_that_diverges_is_recorded_and_never_chosen(started, setting, results):
    parity.grid([LEAN], setting, [3.2e-3, 6.4e-3, 0.1], seeds=1)
    parity.grid([LEAN], setting, [3.2e-3, 6.4e-3, 0.1], seeds=1)
    assert len(started) == 3
    assert json.loads(results.read_text().splitlines()[-1])["accuracy"] is None
    assert math.isnan(parity.tune_means("fashion", LEAN)[0.1])
    assert parity.chosen_rate("fashion", LEAN) == 6.4e-3
    parity.run_seeds([LEAN], setting, seeds=1)
    assert "0.1: diverged" in parity.table("fashion", [LEAN])
    with pytest.raises(SystemExit, match="stopped by nan"):
        parity.ensure(parity.Run("fashion", "final", LEAN.method, LEAN.arguments, 0.1, 0), LEAN, setting)


def test_a_run_that_fails_stops_the_series(started, setting, results, monkeypatch):
    monkeypatch.setattr("subprocess.run", lambda *arguments, **options: SimpleNamespace(returncode=3))
    with pytest.raises(SystemExit, match="stopped by exit status 3"):
        parity.grid([FULL], setting, list(parity.GRID), seeds=1)
    assert not results.exists()


def test_a_run_that_a_cap_stopped_leaves_no_line(started, setting, results, monkeypatch):
    monkeypatch.setattr("json.loads", lambda text: {"stopped_by": "time"})
    with pytest.raises(SystemExit, match="stopped by time"):
        parity.ensure(parity.Run("fashion", "final", "full", (), 4e-4, 0), FULL, setting)
    assert not results.exists()


def test_the_table_pairs_by_seed_and_hides_times_of_a_busy_machine(started, setting):
    parity.grid([FULL, LEAN], setting, list(parity.GRID), seeds=1)
    parity.run_seeds([FULL, LEAN], setting, seeds=3)
    rows = [line for line in parity.table("fashion", [FULL, LEAN]).splitlines() if line.startswith("| `")]
    assert rows[0] == "| `full` | 80.10 % ± 0.10 | 3 | 0.0004 |  | not measured |"
    assert rows[1] == "| `lean` | 80.10 % ± 0.10 | 3 | 0.0064 | +0.00 [+0.00, +0.00], 3 pairs | not measured |"
    parity.ensure(parity.Run("fashion", "final", "full", (), 4e-4, 3), FULL, setting._replace(quiet=True))
    assert "| 1.3 |" in parity.table("fashion", [FULL])


def test_recipes_are_read_in_both_forms(tmp_path):
    entry = {"method": "edgetune", "arguments": ["--disk", "0"]}
    (tmp_path / "named.json").write_text(json.dumps({"lean": entry}))
    (tmp_path / "listed.json").write_text(json.dumps([{"name": "lean", **entry}]))
    for name in ("named.json", "listed.json"):
        assert parity.read_methods("full,lean", tmp_path / name) == [FULL, LEAN]
    assert parity.read_methods("full", tmp_path / "none.json") == [FULL]
