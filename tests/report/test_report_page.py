"""The page as text: whole, self-contained, escaped, true to the artifacts, whatever a run left behind."""

from __future__ import annotations

import html
import json
import re
import shlex
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgetune import schema
from edgetune.errors import InputError
from edgetune.report import write_report
from edgetune.report.markup import Html, element, text
from edgetune.report.page import embedded_json

MakeRun = Callable[..., Path]
HOSTILE = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"quo\'ted" & more',
    "naïve 日本語",
    "\ud800",
]
VOID = {"meta", "link", "img", "br", "hr"}


class Reader(HTMLParser):
    """Checks that elements nest, and gathers what a test asks about."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes nothing at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        inside = self.open[-1] if self.open else ""
        if inside == "script":
            attributes, before = self.scripts[-1]
            self.scripts[-1] = (attributes, before + data)
        elif inside != "style":
            self.text += data


def read(page: Path) -> Reader:
    reader = Reader()
    reader.feed(page.read_text(encoding="utf-8"))
    reader.close()
    assert reader.open == []
    return reader


def charts(reader: Reader) -> dict[str, dict[str, Any]]:
    (data,) = (content for attributes, content in reader.scripts if attributes.get("type") == "application/json")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return {chart["id"]: chart for chart in json.loads(data, parse_constant=refuse)}


SHAPES: dict[str, dict[str, Any]] = {
    "usual": {},
    "one step": {"epochs": 1, "steps_per_epoch": 1},
    "ten thousand steps": {"epochs": 10, "steps_per_epoch": 1000},
    "forty blocks": {"blocks": 40, "patches": 1369},
    "no power": {"power": False},
    "no profile": {"profile": False},
    "cut off": {"result": False, "mistakes": False, "steps": 100},
    "only a plan": {"metrics": False, "result": False, "profile": False, "mistakes": False, "checkpoint": False},
    "hostile names": {"classes": HOSTILE[:4]},
    "many classes": {"classes": [f"class {number}" for number in range(200)], "epochs": 60, "steps_per_epoch": 2},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_page_is_whole_small_and_fetches_nothing(make_run: MakeRun, shape: str) -> None:
    page = write_report(make_run(**SHAPES[shape]))
    assert page.name == "report.html"
    assert page.stat().st_size < 1_000_000
    reader = read(page)
    for tag, attributes in reader.tags:
        for name in ("src", "href", "srcset", "poster", "action", "data"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, attributes)
        assert not any(name.startswith("on") for name in attributes)
    written = page.read_text(encoding="utf-8")
    assert not re.search(r"url\(|@import", written)
    assert not re.search(r"\b(fetch|XMLHttpRequest|WebSocket|EventSource|sendBeacon|importScripts)\b", written)
    # The one address in the page is the library's own, in the comment that names it; so is its licence.
    assert set(re.findall(r"https?://[^\s\"')]+", written)) == {"https://github.com/leeoniya/uPlot"}
    assert "Permission is hereby granted" in written
    assert "Content-Security-Policy" in written
    assert "default-src 'none'" in written
    drawn, places = charts(reader), [a["data-chart"] for _, a in reader.tags if "data-chart" in a]
    assert sorted(drawn) == sorted(filter(None, places))


def test_headline_says_what_the_artifacts_say(make_run: MakeRun) -> None:
    told = read(write_report(make_run())).text
    for said in (
        "93.3 %",
        "571 MiB",
        "82 % of the cap, 700 MiB",
        "8 min 41 s",
        "best of validation, epoch 3",
        "3.21 kJ",
        "36 % of the cap, 9 kJ",
    ):
        assert said in told
    assert "measured" in told
    assert "so far" not in told


@pytest.mark.parametrize(
    ("energy", "word"),
    [
        (schema.EnergyResult(total_j=10.0, measured=True, source="ina3221", scope="module"), "measured"),
        (schema.EnergyResult(total_j=10.0, measured=False, source="--power", scope="estimate"), "modelled"),
        (schema.EnergyResult(), "unknown"),
    ],
)
def test_energy_says_how_it_came_about(make_run: MakeRun, energy: schema.EnergyResult, word: str) -> None:
    page = write_report(make_run(power=False, result_changes={"energy": energy})).read_text(encoding="utf-8")
    (tile,) = re.findall(r'<h3>Energy <span class="badge [a-z-]+">([a-z ]+)</span>', page)
    assert tile == word
    if word == "modelled":
        assert "Modelled, not measured" in page
    if word == "unknown":
        assert "Energy is unknown" in page


def test_the_levers_are_told_in_words(make_run: MakeRun) -> None:
    text = read(write_report(make_run())).text
    assert "lean: blocks with a backward pass of their own" in text
    assert "on disk, read as they are passed; matrix products bf16" in text
    assert "AdamW" in text
    assert "8 bits" in text
    assert "saved, int8" in text
    assert (
        "fp16, 50 tokens an image, 2 views of each; 183 MiB on disk of training images and 73.0 MiB of validation images"
        in text
    )
    assert "augmentationcrop and flip, of 1 of 2 views" in text
    cache = schema.FeatureCachePlan(precision="int8", views=1, tokens=196, train_bytes=4096, val_bytes=0)
    changes = {"feature_cache": cache, "saved_activations": "recompute", "frozen_weights": "int8"}
    text = read(write_report(make_run("small", plan_changes=changes))).text
    assert "int8, 196 tokens an image, 1 view; 4.00 KiB on disk of training images" in text
    assert "KiB of validation images" not in text
    assert "augmentationnone" in text
    assert "recomputed in the backward pass from saved inputs, int8" in text
    assert "in memory, int8; matrix products bf16" in text
    plain = {"trainer": "autograd", "feature_cache": None, "lowest_trainable_block": 0, "optimizer": "sgd-plain"}
    text = read(write_report(make_run("plain", plan_changes=plain))).text
    assert "torch's autograd" in text
    assert "SGD without momentum" in text
    assert "read as they are passed" not in text
    assert "tokens an image" not in text
    assert "augmentationcrop and flip" in text


def test_a_peak_above_the_cap_is_said_aloud(make_run: MakeRun) -> None:
    memory = schema.MemoryResult(
        cap_bytes=500 * 2**20,
        baseline_bytes=None,
        predicted_peak_bytes=1,
        measured_peak_bytes=510 * 2**20,
        device_peak_bytes=None,
    )
    told = read(write_report(make_run(result_changes={"memory": memory, "throttled": True}))).text
    assert "The measured peak is above the memory cap, by 10.0 MiB." in told
    assert "The machine throttled" in told


def test_a_cut_off_run_says_so_and_how_to_go_on(make_run: MakeRun) -> None:
    run = make_run(result=False, mistakes=False, steps=100)
    told = read(write_report(run)).text
    assert "There is no result.json" in told
    assert "so far" in told
    assert f"edgetune fit --resume --out {shlex.quote(str(run))}" in told


def test_a_finished_run_offers_no_resume(make_run: MakeRun) -> None:
    assert "--resume" not in read(write_report(make_run())).text


def test_commands_quote_awkward_paths(make_run: MakeRun) -> None:
    run = make_run("my run; rm x")
    told = read(write_report(run)).text
    assert f"edgetune evaluate {shlex.quote(str(run))} photos/animals" in told
    assert f"edgetune export {shlex.quote(str(run))} --format onnx" in told


def test_hostile_text_stays_text(make_run: MakeRun) -> None:
    hostile = HOSTILE[0]
    data = schema.DataFacts(path=f"a/{hostile}", classes=HOSTILE[:4], train_images=1, val_images=1, split=hostile)
    run = make_run(
        classes=HOSTILE[:4],
        plan_changes={"data": data, "why": [hostile], "warnings": [hostile], "model": hostile},
        result_changes={"warnings": [hostile]},
    )
    event = {"kind": "event", "step": 1, "event": hostile, "message": hostile}
    with open(run / "metrics.jsonl", "a", encoding="utf-8") as lines:
        lines.write(json.dumps(event) + "\n")
    reader = read(write_report(run))
    assert sum(tag == "script" for tag, _ in reader.tags) == 3  # data, library, drawing
    assert all(attributes["src"] != "x" for tag, attributes in reader.tags if tag == "img")
    assert reader.text.count(hostile) >= 6
    assert charts(reader)["loss"]["title"] == "Loss"


def test_embedded_json_survives_any_string_and_number() -> None:
    value = {"text": "</script>\u2028<!-- & \U0001f600", "numbers": [float("nan"), float("inf"), 1.5]}
    written = embedded_json(value)
    assert not set("<>&\u2028\u2029") & set(written)
    assert json.loads(written) == {"text": value["text"], "numbers": [None, None, 1.5]}


def test_markup_escapes_all_but_markup() -> None:
    assert (
        element("p", "<b>", Html("<i></i>"), None, class_='a"b', hidden=True)
        == '<p class="a&quot;b" hidden>&lt;b&gt;<i></i></p>'
    )
    assert text("\ud800") == "?"
    assert element("img", src="x") == '<img src="x">'


def test_charts_hold_the_recorded_figures(make_run: MakeRun) -> None:
    run = make_run(epochs=2, steps_per_epoch=5)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    recorded = [row for row in rows if row["kind"] == "step"]
    drawn = charts(read(write_report(run)))
    assert drawn["loss"]["x"] == list(range(1, 11))
    assert drawn["loss"]["lines"][0]["values"] == pytest.approx([row["loss"] for row in recorded], rel=1e-4)
    assert drawn["loss"]["lines"][-1]["values"][4] == pytest.approx(0.8)
    assert drawn["accuracy"]["x"] == [1, 2]
    assert drawn["accuracy"]["lines"][0]["values"] == pytest.approx([75.0, 85.0])
    assert drawn["tokens"]["rows"][3] == pytest.approx([row["tokens_per_block"][3] for row in recorded])
    assert drawn["trained"]["rows"][11] == [float(11 in row["trained_blocks"]) for row in recorded]
    assert [mark["label"] for mark in drawn["memory"]["marks"]] == ["predicted peak", "cap"]
    assert drawn["tokens"]["edges"] == [step - 0.5 for step in range(1, 12)]


def test_a_far_cap_does_not_flatten_the_memory_chart(make_run: MakeRun) -> None:
    caps = schema.Caps(memory_bytes=20 * 2**30)
    memory = charts(read(write_report(make_run(plan_changes={"caps": caps}))))["memory"]
    assert [mark["label"] for mark in memory["marks"]] == ["predicted peak"]
    assert "cap 20,480 MiB" in memory["caption"]


def test_mistakes_are_shown_with_their_pictures(make_run: MakeRun) -> None:
    run = make_run()
    found = schema.load(run / "mistakes.json", schema.Mistakes)
    reader = read(write_report(run))
    pictures = [attributes for tag, attributes in reader.tags if tag == "img"]
    assert len(pictures) == 10
    assert all((attributes["src"] or "").startswith("data:image/jpeg;base64,/9j/") for attributes in pictures)
    assert pictures[0]["alt"] == found.most_confident[0].path
    wrong = sum(cell.images for cell in found.confusion if cell.true != cell.predicted)
    assert f"wrong on {wrong:,} of 2,000" in reader.text


def test_the_matrix_has_the_true_class_in_rows(make_run: MakeRun) -> None:
    run = make_run()
    found = schema.load(run / "mistakes.json", schema.Mistakes)
    classes = ["ant", "bee", "cow"]
    confusion = [schema.Confusion(true=0, predicted=2, images=37), schema.Confusion(true=2, predicted=1, images=5)]
    confusion += [schema.Confusion(true=each, predicted=each, images=100 + each) for each in range(3)]
    made = msgspec.structs.replace(found, classes=classes, confusion=confusion, images=345, most_confident=[])
    schema.save(made, run / "mistakes.json")
    page = write_report(run).read_text()
    matrix = page[page.index('class="matrix"') :].split("</table>")[0]
    body = matrix.split("<tbody>")[1].split("<tr>")[1:]
    cells = [[re.sub(r"<[^>]+>", "", cell) for cell in re.findall(r"<t[hd].*?</t[hd]>", row)] for row in body]
    assert cells == [["ant", "100", "", "37"], ["bee", "", "101", ""], ["cow", "", "5", "102"]]


def test_odd_mistakes_do_not_break_the_page(make_run: MakeRun) -> None:
    run = make_run()
    found = schema.load(run / "mistakes.json", schema.Mistakes)
    odd = [
        msgspec.structs.replace(found.most_confident[0], thumbnail_jpeg=thumbnail, true=999)
        for thumbnail in (None, b"", b"<svg onload=alert(1)>", b"\xff\xd8\xff" + bytes(5_000_000))
    ]
    confusion = [*found.confusion, schema.Confusion(true=-1, predicted=999, images=5)]
    schema.save(msgspec.structs.replace(found, most_confident=odd, confusion=confusion), run / "mistakes.json")
    page = write_report(run)
    assert page.stat().st_size < 1_000_000
    reader = read(page)
    assert reader.text.count("no thumbnail") == 4
    assert "class 999" in reader.text


def test_damaged_artifacts_are_named_and_left_out(make_run: MakeRun) -> None:
    run = make_run()
    (run / "result.json").write_text("{")
    (run / "profile.json").write_text('{"schema": "edgetune/plan/1"}')
    told = read(write_report(run)).text
    assert f"{run / 'result.json'} is not a valid result" in told
    assert f"{run / 'profile.json'} is not a valid profile" in told


def test_a_folder_without_a_plan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no plan\.json"):
        write_report(tmp_path)


def test_unreadable_metrics_are_reported_on_the_page(make_run: MakeRun) -> None:
    run = make_run(steps=10)
    with open(run / "metrics.jsonl", "a") as lines:
        lines.write('{"kind": "st')
    assert "1 lines of metrics.jsonl could not be read" in read(write_report(run)).text


def test_writing_again_replaces_the_page(make_run: MakeRun) -> None:
    run = make_run()
    first = write_report(run).read_bytes()
    (run / "result.json").unlink()
    assert write_report(run).read_bytes() != first
    assert not [path for path in run.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("cut_off", [False, True])
def test_every_command_shown_is_one_that_the_command_line_knows(make_run: MakeRun, cut_off: bool) -> None:
    import typer.main

    from edgetune.cli import app

    run = make_run("a run", result=not cut_off, mistakes=False)
    shown = re.findall(r"<pre><code>(.*?)</code></pre>", write_report(run).read_text(encoding="utf-8"))
    assert len(shown) == 5 + cut_off
    commands = typer.main.get_group(app).commands
    for line in shown:
        program, name, *arguments = shlex.split(html.unescape(line))
        assert program == "edgetune"
        commands[name].make_context(name, arguments)  # raises on an unknown option or a missing argument


def test_accuracies_recorded_every_few_steps_are_drawn_over_steps(make_run: Callable[..., Path]) -> None:
    run = make_run()
    with (run / "metrics.jsonl").open("a") as lines:
        for step in (20, 40):
            lines.write(json.dumps({"kind": "accuracy", "step": step, "val_accuracy": step / 100}) + "\n")
    page = write_report(run).read_text()
    charts = json.loads(re.search(r'id="charts">(.*?)</script>', page, re.DOTALL)[1])
    (accuracy,) = [chart for chart in charts if chart["id"] == "accuracy"]
    assert accuracy["x_label"] == "step"
    assert accuracy["x"][:2] == [20, 40]
    assert accuracy["lines"][0]["values"][:2] == [20.0, 40.0]
    assert len(accuracy["x"]) == 2 + 3  # and the ends of the epochs


def test_what_lies_above_the_bare_process_has_bars_of_its_own(make_run: Callable[..., Path]) -> None:
    page = write_report(make_run()).read_text()
    assert "Measured above it" in page
    assert "367 MiB" in page  # 571 measured less 204 of the bare process
