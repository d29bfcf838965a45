"""Take finished benchmarks into the repository: raw lines, record and table, and the tables in `docs/results.md`.

    edgetune bench --workload w2 --methods all,lean-full --recipe benchmarks/recipes.json --out runs/w2
    python benchmarks/publish.py runs/w2
    python benchmarks/publish.py runs/field5

Copies `bench.json`, `bench.md` and `runs.jsonl` (or `field5.*`) of each folder to `benchmarks/results/bench/`, under
the workload's name, and writes tables between the marks `<!-- NAME -->` and `<!-- end NAME -->` of the document. No
figure is typed by hand.
"""

from __future__ import annotations

import argparse
import re
import shutil
from pathlib import Path

import msgspec
from machine import RESULTS

from edgetune.bench.page import documented
from edgetune.bench.records import Bench

DOCUMENT = Path(__file__).parent.parent / "docs" / "results.md"
FOLDER = RESULTS / "bench"


def publish(folder: Path, document: Path = DOCUMENT, results: Path = FOLDER) -> str:
    """Copy one benchmark and write its tables; returns its name."""
    results.mkdir(parents=True, exist_ok=True)
    if (folder / "field5.json").exists():
        name, text = "field5", (folder / "field5.md").read_text()
        for kind in ("json", "md", "jsonl"):
            shutil.copyfile(folder / f"field5.{kind}", results / f"field5.{kind}")
    else:
        bench = msgspec.json.decode((folder / "bench.json").read_bytes(), type=Bench)
        name = bench.settings.workload or bench.settings.data
        text = documented(bench)
        for source, target in (("bench.json", "json"), ("bench.md", "md"), ("runs.jsonl", "runs.jsonl")):
            shutil.copyfile(folder / source, results / f"{name}.{target}")
    document.write_text(placed(document.read_text(), name, text))
    return name


def placed(document: str, name: str, text: str) -> str:
    """The document with `text` between the marks of `name`."""
    begin, end = f"<!-- {name} -->", f"<!-- end {name} -->"
    if begin not in document or end not in document:
        raise SystemExit(f"{DOCUMENT.name} has no marks {begin} and {end}; add them where the table belongs.")
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    return pattern.sub(lambda found: f"{begin}\n{text.strip()}\n{end}", document)


def main() -> None:
    """Parse and dispatch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="folders that `edgetune bench --out` wrote")
    for folder in parser.parse_args().folders:
        print(f"published: {publish(folder)}")


if __name__ == "__main__":
    main()
