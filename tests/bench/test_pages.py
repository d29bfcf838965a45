"""`bench.html` and comparisons: what stands on them, and that a real browser shows them whole."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from edgetune import schema
from edgetune.bench.charts import charts_of, pareto
from edgetune.bench.compare import Comparison
from edgetune.bench.html import bench_page
from edgetune.bench.page import cells
from edgetune.bench.records import Bench, CurvePoint, Entry, Run, Spread
from edgetune.bench.summary import summarise
from edgetune.bench.verdict import losses, verdict_cells
from edgetune.cli import app
from edgetune.errors import InputError
from tests.bench.facts import HERE, SETTINGS, make_run
from tests.browser import CHROMIUM, Browser

MIB = 1 << 20
METHODS = {  # peak MiB, seconds, accuracy
    "eager-full": (400, 10.0, 0.80),
    "eager-full-trimmed": (320, 13.0, 0.80),
    "timm-checkpoint": (250, 15.0, 0.80),
    "peft-lora": (350, 8.0, 0.78),
    "full": (390, 9.0, 0.80),
    "head": (60, 4.0, 0.5),
    "random-k": (200, 6.0, 0.7),
    "edgetune": (40, 3.0, 0.79),
}


def make_bench(*, energy: bool | None = True, repetitions: int = 3, more: int = 0, **settings: Any) -> Bench:
    """A benchmark with a known winner in everything but accuracy. `energy`: measured, modelled (False) or unknown."""
    methods = METHODS | {f"another-method-{number}": (200, 6.0, 0.7) for number in range(more)}
    runs: list[Run] = []
    for name, (peak, seconds, accuracy) in methods.items():
        for repetition in range(repetitions):
            took = seconds * (1 + 0.05 * (repetition - 1))
            figures: dict[str, Any] = {"peak_bytes": 100 + peak * MIB, "epochs_s": [took] * 3}
            figures |= {"accuracy": accuracy - 0.01 * repetition}
            if energy is not None:
                figures |= {"epochs_j": [7 * took] * 3, "energy_measured": energy}
                figures |= {"energy_source": "ina3221" if energy else "user", "energy_scope": "module"}
            figures["curve"] = [
                CurvePoint(step=20 * n, accuracy=accuracy * n / 4, train_s=took * n * 0.7, train_j=None)
                for n in range(1, 4)
            ]
            run = make_run(name, repetition, **figures)
            runs.append(msgspec.structs.replace(run, gemm_flops=1e11, idle_w=4.0 if energy else None))
    entries = [Entry(name=name, method=name) for name in methods]
    return summarise(msgspec.structs.replace(SETTINGS, evaluate_steps=20, **settings), entries, runs, repetitions)


def test_the_front_holds_what_nothing_beats() -> None:
    assert pareto([(1, 5), (2, 3), (3, 4), (4, 1), (4, 2)]) == [0, 1, 3]
    assert pareto([(1, 1), (2, 2)]) == [0]
    by_id: dict[str, Any] = {chart.id: chart for chart in charts_of(make_bench())}
    assert list(by_id) == ["memory-time", "accuracy-joules", "joules", "seconds", "memory", "course"]
    points = by_id["memory-time"].points
    assert [points[place].label for place in by_id["memory-time"].front] == ["edgetune"]
    points = by_id["accuracy-joules"].points
    assert [points[place].label for place in by_id["accuracy-joules"].front] == ["edgetune", "full"]


def test_modelled_joules_are_marked_in_every_chart_and_table() -> None:
    by_id: dict[str, Any] = {chart.id: chart for chart in charts_of(make_bench(energy=False))}
    assert all(bar.modelled for bar in by_id["joules"].bars)
    assert all(point.modelled for point in by_id["accuracy-joules"].points)
    assert not any(point.modelled for point in by_id["memory-time"].points)
    assert "modelled" in by_id["joules"].caption
    page = bench_page(make_bench(energy=False))
    assert "21*" in page  # 3 s at 7 W
    assert 'class="badge modelled"' in page
    measured = bench_page(make_bench())
    assert 'class="badge measured"' in measured
    assert "21*" not in measured


def test_without_joules_seconds_stand_in_their_place() -> None:
    assert "accuracy-time" in {chart.id for chart in charts_of(make_bench(energy=None))}
    assert "no sensor answered" in bench_page(make_bench(energy=None))


def test_the_page_says_what_is_won_and_what_is_lost() -> None:
    page = bench_page(make_bench())
    assert "0.12 of the memory and 0.30 of the time of full fine-tuning" in page
    assert "1.0 points below" in page
    made = make_bench()
    rows = {cells[0]: cells[1:] for cells in verdict_cells(made)}
    assert rows["eager-full"] == ["0.10", "0.30", "0.30", "0.30", "1.00", "0.30", "-1.0"]
    assert rows["head"] == ["0.67", "0.75", "0.75", "0.75", "1.00", "0.75", "+29.0"]
    assert losses(made) == (
        "`edgetune` loses in accuracy to `eager-full` (1.0 points), `eager-full-trimmed` (1.0 points), `timm-checkpoint`"
        " (1.0 points), `full` (1.0 points)."
    )
    dearer = [
        msgspec.structs.replace(row, epoch_j=Spread.of([1.0] * 3)) if row.entry.name == "head" else row
        for row in made.methods
        if row.entry.name in ("edgetune", "head")
    ]
    assert losses(msgspec.structs.replace(made, methods=dearer)) == (
        "`edgetune` loses in joules per epoch to `head` (21.00 times as much)."
    )
    unknown = [msgspec.structs.replace(row, epoch_j=None) for row in dearer]
    assert losses(msgspec.structs.replace(made, methods=unknown)) == (
        "`edgetune` loses to none of them in memory, time per epoch, first epoch, later epochs, whole process, accuracy."
    )
    random_colours = make_bench(data="made up: 8 images of 32 px, seed 0")
    assert {cells[-1] for cells in verdict_cells(random_colours)} == {"—"}
    assert "accuracy" not in losses(random_colours)
    told = bench_page(random_colours)
    assert "Its accuracy is" not in told
    assert "Most accurate" not in told
    assert {row[1] for row in cells(random_colours)} == {"—"}
    assert "http" not in page.split("<script")[0].replace("http-equiv", "")


# --- two benchmarks ---------------------------------------------------------------------------------------------------


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    for name, energy, threads in (("a", True, 1), ("b", False, 4)):
        made = make_bench(energy=energy, threads=threads)
        elsewhere = msgspec.structs.replace(HERE, processor=f"processor {name}")
        schema.save(msgspec.structs.replace(made, machines=[elsewhere]), tmp_path / f"{name}.json")
    return tmp_path / "a.json", tmp_path / "b.json"


def test_two_machines_side_by_side(two: tuple[Path, Path], tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["bench", "--compare", *map(str, two), "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "compare.md").read_text().strip() in done.output
    for said in (
        "processor a",
        "processor b",
        "threads differs",
        "| edgetune",
        "joules are measured in A and modelled in B",
    ):
        assert said in done.output
    assert "<h2>Joules per epoch</h2>" in (tmp_path / "out" / "compare.html").read_text()


def test_a_comparison_divides_the_second_by_the_first(two: tuple[Path, Path]) -> None:
    slower = msgspec.json.decode(two[1].read_bytes(), type=Bench)
    rows = [
        msgspec.structs.replace(row, epoch_s=msgspec.structs.replace(row.epoch_s, median=2 * row.epoch_s.median))
        for row in slower.methods
    ]
    schema.save(msgspec.structs.replace(slower, methods=rows), two[1])
    tables = {name: rows for name, _, rows in Comparison(*two).tables()}
    assert {row[3] for row in tables["Seconds per epoch"]} == {"2.00"}
    assert {row[3] for row in tables["Peak above the bare process, MiB"]} == {"1.00"}
    assert {"First epoch, s", "Later epochs, s", "Whole process, s"} <= set(tables)
    assert any("(" in row[1] and "–" in row[1] for rows in tables.values() for row in rows)
    assert all("*" in row[2] and "*" not in row[1] for row in tables["Joules per epoch"])


def test_benchmarks_of_different_things_are_refused(two: tuple[Path, Path]) -> None:
    schema.save(make_bench(batch_size=99), two[1])
    with pytest.raises(InputError, match=r"batch_size 6 .* 99"):
        Comparison(*two)
    with pytest.raises(InputError, match=r"nowhere\.json"):
        Comparison(two[0], two[0].with_name("nowhere.json"))


# --- in a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


COLORS = """
[...document.querySelectorAll(".plot canvas")].map((canvas) => {
  const pixels = new Uint32Array(canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.buffer);
  return new Set(pixels).size;
})
"""


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("energy", "more"), [(True, 0), (False, 0), (None, 9)])
def test_the_page_is_whole(
    browser: Browser, tmp_path: Path, width: int, scheme: str, energy: bool | None, more: int
) -> None:
    path = tmp_path / "bench.html"
    made = make_bench(energy=energy, more=more)
    path.write_text(bench_page(made))
    browser.open(path, width, scheme)
    assert browser.complaints() == []
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    colors = browser.evaluate(COLORS)
    assert len(colors) == len(charts_of(made))
    assert min(colors) > 5


def test_pointing_at_a_method_names_it(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "bench.html"
    path.write_text(bench_page(make_bench()))
    browser.open(path, 1280)
    place = "document.querySelector('[data-chart=memory-time]')"
    browser.evaluate(f"{place}.scrollIntoView({{block: 'center'}})")
    box = browser.evaluate(f"JSON.parse(JSON.stringify({place}.querySelector('.u-over').getBoundingClientRect()))")
    # edgetune is next to the lower left corner: 40 of some 400 MiB, 3 of some 15 s
    x, y = box["x"] + box["width"] * 0.09, box["y"] + box["height"] * 0.82
    browser.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    readout = f"{place}.parentElement.querySelector('.readout').textContent"
    browser.wait_for(f"{readout} != ''")
    assert "edgetune: 40 MiB" in browser.evaluate(readout)


def test_an_empty_benchmark_and_a_comparison_make_pages_too(
    browser: Browser, two: tuple[Path, Path], tmp_path: Path
) -> None:
    entries = [Entry(name="full", method="full")]
    nothing = summarise(SETTINGS, entries, [make_run("full", error="<script>window.pwned = 1</script>")], 1)
    for text, width, scheme in product((bench_page(nothing), Comparison(*two).html()), (390, 1280), ("light", "dark")):
        path = tmp_path / "page.html"
        path.write_text(text)
        browser.open(path, width, scheme)
        assert browser.complaints() == []
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        assert browser.evaluate("window.pwned") is None
