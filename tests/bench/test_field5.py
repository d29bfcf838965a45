"""The table of costs that was given: every row is one that can be measured, and what is written of it adds up."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from edgetune.bench import field5
from edgetune.bench.field5 import MB, TABLES, Field5, FieldRow, field5_markdown, run_field5
from edgetune.cli import app
from edgetune.errors import EdgetuneError
from tests.bench.facts import HERE


def a_row(name: str, saved_mb: float, peak_mb: float, image_s: float, **more: Any) -> FieldRow:
    known: dict[str, Any] = {"others_share": 0.0, "machine": HERE, "created": "now", "step_s": [image_s]} | more
    return FieldRow(
        model=TABLES[0].model,
        row=name,
        saved_bytes=round(saved_mb * MB),
        peak_bytes=round(peak_mb * MB),
        image_s=image_s,
        **known,
    )


def test_the_given_factors_follow_from_its_figures() -> None:
    text = field5_markdown(
        Field5(rows=[a_row("all, AdamW", 229, 280, 0.2), a_row("last 2 blocks", 39, 50, 0.1)], created="")
    )
    assert "| last 2 blocks | 39 → 39 | 54 → 50 | 5.19 → 5.6 | 58 → 100 | 2.57 → 2 ! | — |" in text
    assert "upper bounds" not in text
    crowded = Field5(rows=[a_row("all, AdamW", 229, 320, 0.2, others_share=0.5)], created="")
    assert "280 → 320 !" in field5_markdown(crowded)
    assert "50%" in field5_markdown(crowded)
    rates = [a_row("all, AdamW", 229, 280, 0.2, gemm_flops=rate * 1e9) for rate in (54.0, 70.0, 144.0)]
    assert "around the rows: 54 to 144 GFLOP/s, 70 in the middle" in field5_markdown(Field5(rows=rates, created=""))
    assert "GFLOP/s" not in text
    slowed = [a_row("all, AdamW", 229, 280, 0.2, gemm_flops=100e9), a_row("MeZO", 0, 28, 0.2, gemm_flops=50e9)]
    assert "→ 1 ! | 2 |" in field5_markdown(Field5(rows=slowed, created=""))


def test_of_several_runs_the_fastest_counts_and_the_spread_is_said() -> None:
    rows = [
        a_row("all, AdamW", 229, 280, 0.2),
        a_row("all, AdamW", 229, 281, 0.16),
        a_row("all, AdamW", 229, 280, 0.24),
    ]
    text = field5_markdown(Field5(rows=[*rows, a_row("MeZO", 0, 28, 0.1)], created=""))
    assert "| all, AdamW | 229 → 229 | 280 → 281 | 1 → 1 | 149 → 160 |" in text
    assert (
        "lowest of up to 3 runs; the highest of a row's lies 50% above it in the middle of 1 rows, 50% at most" in text
    )


def test_what_was_measured_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def measure(table: Any, given: Any, machine: Any) -> FieldRow:
        asked.append(given.name)
        return a_row(given.name, 1, 1, 1)

    monkeypatch.setattr(field5, "_measure", measure)
    monkeypatch.setattr(field5, "TABLES", TABLES[:1])
    run_field5(tmp_path, rows=["all, AdamW", "head only"])
    (tmp_path / "field5.jsonl").write_bytes((tmp_path / "field5.jsonl").read_bytes() + b'{"torn')
    made = run_field5(tmp_path, rows=["all, AdamW", "MeZO"])
    assert asked == ["all, AdamW", "head only", "MeZO"]
    assert [row.row for row in made.rows] == asked
    made = run_field5(tmp_path, rows=["all, AdamW", "MeZO"], repetitions=2)
    assert [row.row for row in made.rows] == asked == ["all, AdamW", "head only", "MeZO", "all, AdamW", "MeZO"]
    assert msgspec.json.decode((tmp_path / "field5.json").read_bytes())["schema"] == "edgetune/field5/1"


def test_a_row_that_fails_keeps_no_other_from_being_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(table: Any, given: Any, machine: Any) -> FieldRow:
        if given.name == "head only":
            raise EdgetuneError("ViT-Ti/16, head only failed: killed by signal 9.")
        return a_row(given.name, 1, 1, 1)

    monkeypatch.setattr(field5, "_measure", measure)
    monkeypatch.setattr(field5, "TABLES", TABLES[:1])
    with pytest.raises(EdgetuneError, match="killed by signal 9"):
        run_field5(tmp_path, rows=["all, AdamW", "head only", "MeZO"])
    found = msgspec.json.decode((tmp_path / "field5.json").read_bytes(), type=Field5)
    assert [row.row for row in found.rows] == ["all, AdamW", "MeZO"]


def test_options_that_the_table_settles_are_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        app, ["bench", "--workload", "field5", "--out", str(tmp_path), "--epochs", "3", "--seed", "5"]
    )
    assert "leave out --epochs, --seed" in str(done.exception)


CHECK = """
import sys
import edgetune.bench.field5_row as row
row._STEPS, row._WARM_STEPS = 1, 0
for name in sys.argv[1:]:
    setting = row.Setting("vit_tiny_patch16_224", 1, name)
    saved = row.saved_bytes(setting)
    before = [weight.detach().clone() for weight in setting.trained]
    setting.step()
    moved = sum(not weight.equal(old) for weight, old in zip(setting.trained, before))
    print(saved, moved, len(before))
"""


def test_rows_train_what_they_say_and_keep_as_much_as_was_given() -> None:
    pytest.importorskip("timm", reason="timm is not installed: edgetune[bench] brings it")
    wanted = {"head only": 2, "last 4 blocks, tokens kept 50 %": 52, "biases only": 76, "saved tensors in int8": 152}
    done = subprocess.run([sys.executable, "-c", CHECK, *wanted], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    given = {row.name: row for row in TABLES[0].rows}
    for (name, count), line in zip(wanted.items(), done.stdout.splitlines(), strict=True):
        saved, moved, trained = map(int, line.split())
        assert trained == count, name
        assert moved >= 0.9 * count, name  # a row of zeros, such as a key's bias, may stay
        if name != "saved tensors in int8":  # how those were packed was not given
            assert saved * 8 / MB == pytest.approx(given[name].saved_mb, rel=0.05, abs=1), name
