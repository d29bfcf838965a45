"""What an engine costs before it does anything: resident memory of its imports, and disk space of its installation.

    python benchmarks/import_cost.py run --extra onnx
    python benchmarks/import_cost.py run --extra torch --pin torch==2.14.1 torchvision==0.29.1
    sudo python benchmarks/import_cost.py emulated --root ROOT --wheels WHEELS
    python benchmarks/import_cost.py table

Each run makes a fresh environment and installs `edgetune[EXTRA]` of this checkout into it with pip as it is configured
here. It adds up what the packages take on the disk (blocks, as `du` does; pip and setuptools of the bare environment
left out), and imports modules in fresh processes: VmRSS after the imports, the median of `--repetitions` after one that
fills the page cache. `RssFile` is the part that is mapped from files, `RssAnon` the part that is the process's own.

On x86_64 the package index's torch is the CUDA build. `emulated` shows what a CPU build takes, as a Raspberry Pi gets
it: arm64 wheels are unpacked and imported by an arm64 Python in ROOT under qemu-user (`make test-arm64` leaves a root
in ~/.cache/edgetune/arm64, `make test-images` torch's wheels), and the process is read from outside, without qemu's own
file and the memory it translates code into. What is mapped from files is what a board would map; the rest has qemu's
tables in it, and is an upper bound. A run adds one line to `results/import_cost.jsonl`; `table` prints all.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import venv
import zipfile
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
EMULATED = ("", "numpy", "numpy torch")
WAITING = "import importlib, sys; [importlib.import_module(n) for n in sys.argv[1:]]; print(flush=True); input()"
# Mounts of its own, that go with it; the wheels at /opt/wheels, which lies in memory.
INSIDE = """
mount -t proc proc "$1/proc" && mount --rbind /dev "$1/dev" && mount -t tmpfs tmpfs "$1/opt" && mkdir "$1/opt/wheels" &&
mount --bind "$2" "$1/opt/wheels" && root=$1 && shift 2 &&
exec chroot "$root" env -i PATH=/usr/bin:/bin PYTHONPATH=/opt/wheels QEMU_CPU=max python3 "$@"
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


def emulated(root: Path, wheels: Path, repetitions: int, folder: Path) -> dict[str, Any]:
    """One line of the results: numpy and torch of another architecture."""
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as packed:
            packed.extractall(folder)
    found: dict[str, dict[str, float]] = {}
    for modules in EMULATED:
        runs = [emulated_cost(root, folder, modules) for _ in range(repetitions + 1)][1:]
        found[modules] = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    packages = dict(wheel.name.split("-")[:2] for wheel in wheels.glob("*.whl"))
    return {
        "extra": "arm64, emulated",
        "installed_bytes": disk_bytes(folder),
        "packages": packages,
        "imports": found,
        "repetitions": repetitions,
    }


def emulated_cost(root: Path, site: Path, modules: str) -> dict[str, float]:
    """Resident memory of one process, as the host sees it."""
    words = ["unshare", "--mount", "bash", "-c", INSIDE, "bash", str(root), str(site), "-c", WAITING, *modules.split()]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        if not process.stdout.readline():
            raise SystemExit(f"{modules or 'Python'} could not be started in {root}")
        mapped = Path(f"/proc/{process.pid}/smaps").read_text()
        process.stdin.write("\n")
        process.stdin.close()
    files = anonymous = 0
    for line in mapped.splitlines():
        key, *values = line.split()
        if not key.endswith(":"):
            ours = not (len(values) > 4 and "qemu" in values[4]) and "x" not in values[0]
            code = len(values) > 4 and "qemu" not in values[4]
        elif key == "Rss:":
            resident = int(values[0]) << 10
        elif key == "Anonymous:" and (ours or code):
            files += resident - (int(values[0]) << 10)
            anonymous += int(values[0]) << 10
    return {"VmRSS": files + anonymous, "RssFile": files, "RssAnon": anonymous}


def table() -> None:
    """Markdown: the last line of each extra."""
    last = {line["extra"]: line for line in lines(NAME)}
    print("| installed | on disk | imported | resident | of it mapped from files |")
    print("|---|---:|---|---:|---:|")
    for extra, line in last.items():
        name = extra if extra not in IMPORTS else f"edgetune[{extra}]" if extra else "edgetune"
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
    foreign = commands.add_parser("emulated")
    foreign.add_argument("--root", type=Path, required=True, help="a folder with an arm64 system and its Python")
    foreign.add_argument(
        "--wheels", type=Path, required=True, help="a folder with wheels: torch, numpy and their needs"
    )
    foreign.add_argument("--repetitions", type=int, default=3)
    commands.add_parser("table")
    arguments = parser.parse_args()
    if arguments.command == "table":
        table()
        return
    if sys.platform != "linux":
        sys.exit("memory is read from /proc, which only Linux has.")
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.command == "emulated":
            line = emulated(arguments.root, arguments.wheels, arguments.repetitions, Path(scratch))
        else:
            line = measure(arguments.extra, arguments.pin, arguments.repetitions, Path(scratch) / "env")
        append(NAME, line)


if __name__ == "__main__":
    main()
