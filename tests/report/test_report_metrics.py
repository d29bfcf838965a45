"""Reading `metrics.jsonl`: long, cut off, resumed, damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetune.report.metrics import COARSE_BINS, FINE_BINS, read_metrics


def steps(path: Path, count: int, start: int = 1) -> None:
    with open(path, "a", encoding="utf-8") as lines:
        for step in range(start, start + count):
            row = {
                "kind": "step",
                "step": step,
                "loss": float(step),
                "memory_bytes": 1000 + step % 7,
                "trained_blocks": [step % 2],
                "tokens_per_block": [10, 8],
                "budgets": None,
            }
            lines.write(json.dumps(row) + "\n")


def test_short_runs_keep_every_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    steps(path, 50)
    metrics = read_metrics(path, 2)
    assert [bin.last_step for bin in metrics.fine] == list(range(1, 51))
    assert [bin.of("loss").mean for bin in metrics.fine] == [float(step) for step in range(1, 51)]
    assert not metrics.downsampled
    assert metrics.last_step == 50


def test_accuracies_between_the_ends_of_epochs_are_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    steps(path, 4)
    with open(path, "a", encoding="utf-8") as lines:
        for step, accuracy in ((2, 0.25), (4, 0.5), (6, None)):
            lines.write(json.dumps({"kind": "accuracy", "step": step, "val_accuracy": accuracy}) + "\n")
    assert read_metrics(path, 2).accuracies == {2: 0.25, 4: 0.5}


def test_long_runs_are_binned_without_losing_extremes(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    steps(path, 10_000)
    metrics = read_metrics(path, 2)
    assert len(metrics.fine) <= FINE_BINS
    assert len(metrics.coarse) <= COARSE_BINS
    assert sum(bin.steps for bin in metrics.fine) == sum(bin.steps for bin in metrics.coarse) == 10_000
    assert metrics.fine[0].of("loss").least == 1.0
    assert metrics.fine[-1].of("loss").most == 10_000.0
    assert max(bin.of("memory_bytes").most or 0 for bin in metrics.fine) == 1006
    first = metrics.fine[0]
    assert first.of("loss").mean == pytest.approx(sum(range(1, first.last_step + 1)) / first.last_step)
    assert sum(tally.total for bin in metrics.coarse for tally in bin.trained) == 10_000


def test_steps_run_again_after_a_resume_stay_in_order(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    steps(path, 100)
    steps(path, 100, start=91)
    last_steps = [bin.last_step for bin in read_metrics(path, 2).fine]
    assert last_steps == list(range(1, 191))


def test_an_epoch_run_again_replaces_the_first(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [
        {"kind": "epoch", "epoch": epoch, "val_accuracy": accuracy}
        for epoch, accuracy in ((1, 0.1), (2, 0.2), (2, 0.3))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [row["val_accuracy"] for row in read_metrics(path, 1).epochs] == [0.1, 0.3]


def test_torn_and_foreign_lines_are_counted_and_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    steps(path, 3)
    with open(path, "ab") as lines:
        lines.write(b'\xff\xfe\n[1, 2]\n\n{"kind": "new", "step": 4}\n{"kind": "step", "step": 4, "loss"')
    metrics = read_metrics(path, 2)
    assert metrics.unreadable_lines == 3
    assert metrics.last_step == 3


def test_figures_that_are_no_numbers_are_unknown(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"kind": "step", "step": 1, "loss": NaN, "lr": Infinity, "power_w": null, "memory_bytes": "many",'
        ' "images_per_s": true, "tokens_per_block": [NaN, 3], "budgets": "none", "trained_blocks": [null, 1, 99]}\n'
    )
    (bin,) = read_metrics(path, 2).fine
    assert all(bin.of(name).mean is None for name in ("loss", "lr", "power_w", "memory_bytes", "images_per_s"))
    (column,) = read_metrics(path, 2).coarse
    assert [tally.mean for tally in column.tokens] == [None, 3.0]
    assert column.budgets == []
    assert [tally.mean for tally in column.trained] == [0.0, 1.0]


def test_a_missing_file_is_an_empty_run(tmp_path: Path) -> None:
    metrics = read_metrics(tmp_path / "metrics.jsonl", 12)
    assert (metrics.fine, metrics.coarse) == ([], [])
    assert (metrics.epochs, metrics.events) == ([], [])
    assert metrics.last_step is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=6,
)
ROW = st.fixed_dictionaries(
    {"kind": st.sampled_from(["step", "epoch", "event", "other"])},
    optional=dict.fromkeys(
        ("step", "epoch", "loss", "val_accuracy", "tokens_per_block", "budgets", "trained_blocks", "message"),
        JSON,
    ),
)


@settings(max_examples=60, deadline=None)
@given(lines=st.lists(ROW.map(json.dumps) | st.text(max_size=30), max_size=12), blocks=st.integers(0, 3))
def test_no_content_breaks_the_reader(tmp_path_factory: pytest.TempPathFactory, lines: list[str], blocks: int) -> None:
    path = tmp_path_factory.mktemp("metrics") / "metrics.jsonl"
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    metrics = read_metrics(path, blocks)
    order = [bin.last_step for bin in metrics.fine]
    assert order == sorted(set(order))
    assert all(len(bin.trained) <= blocks and len(bin.tokens) <= blocks for bin in metrics.coarse)
