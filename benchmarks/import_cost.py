"""What an engine costs before it does anything: resident memory of its imports, and disk space of its installation.

    python benchmarks/import_cost.py run --extra onnx
    python benchmarks/import_cost.py run --extra torch --pin torch==2.14.1 torchvision==0.29.1
    python benchmarks/import_cost.py table

Each run makes a fresh environment and installs `edgetune[EXTRA]` of this checkout into it with pip as it is configured
here. It adds up what the packages take on the disk (blocks, as `du` does; pip and setuptools of the bare environment
left out), and imports modules in fresh processes: VmRSS after the imports, the median of `--repetitions` after one that
fills the page cache. `RssFile` is the part that is mapped from files, `RssAnon` the part that is the process's own.

On x86_64 the package index's torch is the CUDA build: what a CPU build takes is not measured here. A run adds one line
to `results/import_cost.jsonl`; `table` prints them as Markdown.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

from machine import append, lines

NAME = "import_cost"
ROOT = Path(__file__).parent.parent
# What is imported together, by extra; "" is Python alone.
IMPORTS: dict[str, tuple[str, ...]] = {
    "": ("", "numpy", "edgetune.plan"),
    "onnx": ("", "numpy", "numpy onnxruntime", "numpy onnxruntime onnx PIL.Image"),
    "torch": ("", "numpy", "numpy torch", "numpy torch PIL.Image edgetune.train.fit"),
}
CHILD = """
import importlib, json, sys, time
start = time.perf_counter()
for name in sys.argv[1:]:
    importlib.import_module(name)
seconds = time.perf_counter() - start
fields = dict(line.split(":", 1) for line in open("/proc/self/status"))
found = {name: 1024 * int(fields[name].split()[0]) for name in ("VmRSS", "VmHWM", "RssFile", "RssAnon")}
print(json.dumps({"seconds": seconds, **found}))
"""
VERSIONS = """
import json
from importlib import metadata
print(json.dumps({each.metadata["Name"].lower(): each.version for each in metadata.distributions()}))
"""


def disk_bytes(folder: Path) -> int:
    """What a folder takes on the disk; a file with several names counts once."""
    seen = {}
    for path in folder.rglob("*"):
        facts = path.lstat()
        seen[facts.st_dev, facts.st_ino] = 512 * facts.st_blocks
    return sum(seen.values())


def cost_of(python: Path, modules: str, repetitions: int) -> dict[str, float]:
    """Medians over fresh processes."""
    command = [str(python), "-c", CHILD, *modules.split()]
    found = []
    for _ in range(repetitions + 1):
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=python.parent)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    return {name: statistics.median(each[name] for each in found[1:]) for name in found[0]}


def measure(extra: str, pins: list[str], repetitions: int, folder: Path) -> dict[str, Any]:
    """One line of the results."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    bare = disk_bytes(folder)
    what = f"{ROOT}[{extra}]" if extra else str(ROOT)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, what, *pins], check=True)
    versions = json.loads(subprocess.run([str(python), "-c", VERSIONS], capture_output=True, check=True).stdout)
    installed = disk_bytes(folder) - bare
    return {
        "extra": extra,
        "installed_bytes": installed,
        "packages": versions,
        "imports": {modules: cost_of(python, modules, repetitions) for modules in IMPORTS[extra]},
        "repetitions": repetitions,
    }


def table() -> None:
    """Markdown: the last line of each extra."""
    last = {line["extra"]: line for line in lines(NAME)}
    print("| installed | on disk | imported | resident | of it mapped from files |")
    print("|---|---:|---|---:|---:|")
    for extra, line in last.items():
        name = f"edgetune[{extra}]" if extra else "edgetune"
        size = f"{line['installed_bytes'] / 1e6:,.0f} MB"
        for modules, cost in line["imports"].items():
            shown = ", ".join(modules.split()) or "(Python alone)"
            print(f"| `{name}` | {size} | {shown} | {cost['VmRSS'] / 1e6:.0f} MB | {cost['RssFile'] / 1e6:.0f} MB |")


def main() -> None:
    """Parse and dispatch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("--extra", default="onnx", choices=sorted(IMPORTS))
    running.add_argument("--pin", nargs="*", default=[], help="requirements that fix versions")
    running.add_argument("--repetitions", type=int, default=5)
    commands.add_parser("table")
    arguments = parser.parse_args()
    if arguments.command == "table":
        table()
        return
    if sys.platform != "linux":
        sys.exit("memory is read from /proc, which only Linux has.")
    with tempfile.TemporaryDirectory() as scratch:
        append(NAME, measure(arguments.extra, arguments.pin, arguments.repetitions, Path(scratch) / "env"))


if __name__ == "__main__":
    main()
