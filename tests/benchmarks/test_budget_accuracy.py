"""The series of accuracies at a budget: what is asked of `fit`, and the table."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import machine
import pytest

from benchmarks import budget_accuracy


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    monkeypatch.setattr(machine, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(budget_accuracy, "chosen_rate", lambda workload, method: 0.002)
    return argparse.Namespace(workload="fashion", data=tmp_path, weights=None, seeds=2, threads=1)


def test_every_method_gets_its_share_of_the_reference_of_its_seed(
    options: argparse.Namespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[list[str]] = []

    def fit(workload: str, data: Path, weights: Path | None, words: list[str], threads: int) -> dict[str, Any]:
        asked.append(words)
        capped = "--time" in words
        return {
            "accuracy": 0.5 if capped else 0.75,
            "total_s": 100.0 + int(words[words.index("--seed") + 1]),
            "stopped_by": "time" if capped else "epochs",
            "images": 1500,
        }

    monkeypatch.setattr(budget_accuracy, "fit", fit)
    budget_accuracy.run(options)
    runs = len(budget_accuracy.METHODS) * len(budget_accuracy.SHARES)
    assert len(asked) == 2 * (1 + runs)
    assert all(words[words.index("--lr") + 1] == "0.002" for words in asked)
    capped = [words[words.index("--time") + 1] for words in asked if "--time" in words]
    assert sorted(set(capped[:runs])) == ["10.0s", "20.0s", "40.0s", "80.0s"]
    assert capped[runs] == "10.1s"  # the second seed's own reference
    four = next(words for words in asked if "trained_blocks=4" in words)
    assert four[four.index("--method") + 1] == "edgetune"

    budget_accuracy.run(options)  # nothing is repeated
    assert len(asked) == 2 * (1 + runs)
    capsys.readouterr()
    budget_accuracy.table("fashion")
    said = capsys.readouterr().out
    assert "75.0 (75.0 to 75.0) in 100 s" in said
    assert "| `lora` | 0.002 | 50.0 (50.0 to 50.0); 1.5k | 50" in said


def test_a_run_that_its_cap_did_not_let_begin_is_told_apart_from_one_that_learned_nothing() -> None:
    cell: list[dict[str, Any]] = [{"accuracy": None}, {"accuracy": 0.2}]
    assert budget_accuracy._accuracy(cell) == "20.0 (20.0 to 20.0) and 1 not begun"
    assert budget_accuracy._accuracy(cell[:1]) == "not begun"
