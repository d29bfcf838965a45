"""Tables go into a document between their marks, whole and nowhere else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import pytest

from benchmarks.publish import DOCUMENT, FOLDER, again, name_of, placed, publish
from edgetune import schema
from edgetune.bench.records import Entry
from edgetune.bench.summary import summarise
from tests.bench.facts import SETTINGS, make_run


def test_a_benchmark_goes_between_its_marks(tmp_path: Path) -> None:
    entries = [Entry(name=name, method=name) for name in ("eager-full", "edgetune")]
    runs = [make_run("eager-full"), make_run("edgetune", peak_bytes=150)]
    (tmp_path / "run").mkdir()
    schema.save(summarise(SETTINGS, entries, runs, 1), tmp_path / "run" / "bench.json")
    for name in ("bench.md", "runs.jsonl"):
        (tmp_path / "run" / name).write_text("kept\n")
    document = tmp_path / "results.md"
    document.write_text("before\n<!-- photos -->\nold\n<!-- end photos -->\nafter\n")
    for _ in range(2):
        assert publish(tmp_path / "run", document, tmp_path / "results") == "photos"
    written = document.read_text()
    assert written.startswith("before\n<!-- photos -->\n**vit_nano")
    assert written.endswith("<!-- end photos -->\nafter\n")
    assert "old" not in written
    assert "| eager-full       |   0.25 |" in written
    assert {path.name for path in (tmp_path / "results").iterdir()} == {"photos.json", "photos.md", "photos.runs.jsonl"}
    with pytest.raises(SystemExit, match="has no marks"):
        placed(written, "w9", "table")


def test_other_images_than_a_workloads_own_are_another_table() -> None:
    settings = msgspec.structs.replace(SETTINGS, workload="w4", data="bundled: digits")
    assert name_of(settings) == "w4"
    assert name_of(msgspec.structs.replace(settings, data="fashion")) == "w4-fashion"
    assert name_of(msgspec.structs.replace(settings, workload="w1", data="photos")) == "w1"
    assert name_of(SETTINGS) == "photos"


def test_the_document_has_a_place_for_every_workload() -> None:
    text = DOCUMENT.read_text()
    for name in ("w1", "w2", "w3", "w4", "field5"):
        assert f"<!-- {name} -->" in text
        assert f"<!-- end {name} -->" in text


def test_tables_of_the_document_are_what_their_raw_lines_give(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "results")
    shutil.copy(DOCUMENT, tmp_path / "results.md")
    assert {"w1", "w2", "w3", "w4", "field5"} <= set(again(tmp_path / "results.md", tmp_path / "results"))
    assert (tmp_path / "results.md").read_text() == DOCUMENT.read_text()
    for path in FOLDER.glob("*.json"):
        if path.stem != "field5":  # carries the day it was made
            assert json.loads((tmp_path / "results" / path.name).read_text()) == json.loads(path.read_text()), path.name
