"""Take finished benchmarks into the repository: raw lines, record and table, and the tables in `docs/results.md`.

    edgetune bench --workload w2 --methods all,lean-full --recipe benchmarks/recipes.json --out runs/w2
    python benchmarks/publish.py runs/w2
    python benchmarks/publish.py runs/field5
    python benchmarks/publish.py --again

Copies `bench.json`, `bench.md` and `runs.jsonl` (or `field5.*`) of each folder to `benchmarks/results/bench/`, under
the workload's name, and writes tables between the marks `<!-- NAME -->` and `<!-- end NAME -->` of the document. No
figure is typed by hand. `--again` makes records and tables anew from the raw lines that are in the repository, for when
what is made of them has changed.
"""

from __future__ import annotations

import argparse
import re
import shutil
from pathlib import Path

import msgspec
from machine import RESULTS

from edgetune import schema
from edgetune.bench.field5 import run_field5
from edgetune.bench.page import documented, markdown
from edgetune.bench.records import Bench, Settings
from edgetune.bench.series import read_runs, recipe_of
from edgetune.bench.summary import summarise
from edgetune.bench.workloads import WORKLOADS

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
        name = name_of(bench.settings)
        text = documented(bench)
        for source, target in (("bench.json", "json"), ("bench.md", "md"), ("runs.jsonl", "runs.jsonl")):
            shutil.copyfile(folder / source, results / f"{name}.{target}")
    document.write_text(placed(document.read_text(), name, text))
    return name


def name_of(settings: Settings) -> str:
    """What a benchmark's files and marks are called: its workload, and the images where those are not its own."""
    workload, data = settings.workload, settings.data
    if workload is None or (WORKLOADS[workload].sample and not data.startswith("bundled: ")):
        return "-".join(filter(None, (workload, data)))
    return workload


def again(document: Path = DOCUMENT, results: Path = FOLDER) -> list[str]:
    """Make every record and table anew from its raw lines; returns their names."""
    done = []
    for log in sorted(results.glob("*.runs.jsonl")):
        name = log.name.removesuffix(".runs.jsonl")
        record = results / f"{name}.json"
        if not record.exists():
            continue
        before = msgspec.json.decode(record.read_bytes(), type=Bench)
        entries = [row.entry for row in before.methods]
        wanted = {recipe_of(entry) for entry in entries}
        last = {
            (run.entry.name, run.repetition): run
            for run in read_runs(log)
            if recipe_of(run.entry) in wanted and run.repetition < before.repetitions
        }
        made = summarise(before.settings, entries, list(last.values()), before.repetitions)
        made = msgspec.structs.replace(made, created=before.created)
        schema.save(made, record)
        (results / f"{name}.md").write_text(markdown(made))
        document.write_text(placed(document.read_text(), name, documented(made)))
        done.append(name)
    if (results / "field5.jsonl").exists():
        run_field5(results, rows=[])
        document.write_text(placed(document.read_text(), "field5", (results / "field5.md").read_text()))
        done.append("field5")
    return done


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
    parser.add_argument("folders", nargs="*", type=Path, help="folders that `edgetune bench --out` wrote")
    parser.add_argument("--again", action="store_true", help="what is in the repository, from its raw lines")
    arguments = parser.parse_args()
    for folder in arguments.folders:
        print(f"published: {publish(folder)}")
    for name in again() if arguments.again else ():
        print(f"made anew: {name}")


if __name__ == "__main__":
    main()
