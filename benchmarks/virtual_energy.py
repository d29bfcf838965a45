"""Joules from a sensor to a chart, on a virtual board whose true joules are known.

    python benchmarks/virtual_energy.py run
    python benchmarks/virtual_energy.py table

`edgetune bench --root BOARD` compares three methods on made-up images; every process reads the board's rail monitor as
it would read a Jetson's (`tests/virtual_board`: watts follow the processor time that is really used). What stands on
the page's bars is then taken out of `bench.html` and held against the board's own integral over the same epochs. One
line per method goes to `results/virtual_energy.jsonl`.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from machine import append, lines
from workloads import prepare_synthetic

from edgetune.bench import bench
from edgetune.bench.series import read_runs
from tests.virtual_board import virtual_board

NAME = "virtual_energy"
METHODS = ("eager-full", "full", "edgetune")
IMAGES, SIZE, EPOCHS = 1000, 32, 2


def measure(
    scratch: Path, *, methods: tuple[str, ...] = METHODS, images: int = IMAGES, size: int = SIZE, epochs: int = EPOCHS
) -> list[dict[str, Any]]:
    """One benchmark on a fresh board; per method what the chart says and what is true, in joules per epoch."""
    prepare_synthetic(scratch / "data", train=images, val=32, side=size)
    (scratch / "board").mkdir()
    with virtual_board(scratch / "board") as board:
        made = bench(
            scratch / "out",
            methods=methods,
            repetitions=1,
            data=scratch / "data",
            model="vit_nano_patch8_64",
            image_size=size,
            threads=1,
            epochs=epochs,
            evaluate_steps=0,
            root=board.root,
        )
        truth = {
            run.entry.name: [board.true_joules(began, ended) for began, ended in run.figures.epoch_spans_s]
            for run in read_runs(scratch / "out" / "runs.jsonl")
            if run.figures is not None
        }
    bars = chart_values(scratch / "out" / "bench.html", "joules")
    return [
        {
            "method": row.entry.name,
            "chart_j": bars[row.entry.name],
            "truth_j": statistics.fmean(truth[row.entry.name]),
            "net_j": row.net_epoch_j.median if row.net_epoch_j else None,
            "epoch_s": row.epoch_s.median if row.epoch_s else None,
            "idle_w": made.idle_w.median if made.idle_w else None,
            "source": row.energy_source,
            "measured": row.energy_measured,
        }
        for row in made.methods
    ]


def chart_values(page: Path, chart: str) -> dict[str, float]:
    """The bars of a chart as its page holds them."""
    found = re.search(r'<script[^>]*id="charts"[^>]*>(.*?)</script>', page.read_text(), re.DOTALL)
    assert found, f"{page} has no charts"
    (wanted,) = [each for each in json.loads(found[1]) if each["id"] == chart]
    return {bar["label"]: bar["value"] for bar in wanted["bars"]}


def table() -> None:
    """Markdown, the newest line of each method."""
    print("| method | J per epoch on the chart | true | off by | net J | s per epoch |")
    print("|---|---:|---:|---:|---:|---:|")
    for line in {line["method"]: line for line in lines(NAME)}.values():
        off = line["chart_j"] / line["truth_j"] - 1
        print(
            f"| `{line['method']}` | {line['chart_j']:.2f} | {line['truth_j']:.2f} | {off:+.2%} | {line['net_j']:.2f}"
            f" | {line['epoch_s']:.1f} |"
        )


def main() -> None:
    """Parse and dispatch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "table"))
    if parser.parse_args().command == "run":
        with tempfile.TemporaryDirectory() as scratch:
            for record in measure(Path(scratch)):
                append(NAME, record)
    table()


if __name__ == "__main__":
    main()
