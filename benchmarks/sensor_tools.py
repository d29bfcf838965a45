"""Which watts do zeus, codecarbon and jetson-stats report for a board, beside edgetune? On the same fixture trees.

The table of docs/sensor_tools.md. The tools are run unchanged, each in its own process, in a private mount namespace in
which the fixture's `/sys`, `/proc/cpuinfo` and `/proc/meminfo` lie where the kernel's would (and without a network), so
root is needed. What stands in for the machine is said here and in the table:

* zeus 0.16: the rails its `Jetson` class finds, read through its own classes; its availability check (which asks
  `platform.processor()` for `aarch64`) is passed over, and its polling process is not started. On x86 its `RAPLCPUs`.
* jetson-stats 7.2: its `PowerService`, as its daemon uses it.
* codecarbon 3.3: its `OfflineEmissionsTracker` for three seconds, with the machine word, the number of cores and the
  CPU use of the board (none, and half on the Raspberry Pi 4); the sum of its CPU, GPU and RAM watts.

Run: `python -m venv PEERS && PEERS/bin/pip install zeus==0.16.0 codecarbon==3.3.2 jetson-stats==7.2.2`, then
`python benchmarks/sensor_tools.py --python PEERS/bin/python`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
FIXTURES = ROOT / "tests/fixtures/devices"
TOOLS = ("zeus", "jetson-stats", "codecarbon")
BOARDS: dict[str, tuple[str, float | None, str]] = {
    "nano-jp4": ("Jetson Nano", 1.022, "POM_5V_IN, the board's 5 V input"),
    "tx2-jp4": ("Jetson TX2", 3.056, "VDD_IN, the module"),
    "xavier-nx-jp4": ("Xavier NX, JetPack 4", 4.067, "VDD_IN, the module"),
    "xavier-nx-jp5": ("Xavier NX, JetPack 5", 2.763, "VDD_IN, the module"),
    "agx-xavier-jp5": ("AGX Xavier", 3.346, "sum of six rails, unverified"),
    "orin-nano-super-jp6": ("Orin Nano Super", 5.251, "VDD_IN, the module"),
    "agx-orin-jp5": ("AGX Orin, JetPack 5", 6.708, "three supplies; VDDQ is inside one of them"),
    "agx-orin-jp6": ("AGX Orin, JetPack 6", 8.726, "three supplies"),
    "thor-t5000-jp7": ("AGX Thor", 19.780, "VIN, the board's input"),
    "rpi5": ("Raspberry Pi 5", 10.800, "sum of the power chip's outputs"),
    "rpi4": ("Raspberry Pi 4B", None, "no sensor; a published model says 4.553 at half use"),
    "generic-sbc": ("RK3588 board", None, "no sensor: unknown"),
    "sbc-battery": ("phone on its battery", 2.008, "the battery, discharging"),
    "x86-rapl": ("x86 with RAPL", 15.050, "package-0 + dram, counters moving"),
}
HALF_BUSY = "cpu  400 0 100 450 50 0 0 0 0 0\n"
RAPL_STEPS_W = {"": 15.0, "intel-rapl:0:0": 9.0, "intel-rapl:0:1": 1.0, "intel-rapl:0:2": 0.05}  # and psys below
PSYS_W = 24.0
WINDOW_S = 5.0  # the counters are moved by a thread, which a busy machine delays a little
RAPL = "sys/devices/virtual/powercap"


def prepare(name: str, folder: Path) -> Path:
    """A copy of a fixture, with what this comparison adds."""
    root = folder / name
    shutil.copytree(FIXTURES / name, root, symlinks=True)
    if name == "rpi4":
        (root / "proc/stat").write_text(HALF_BUSY)
    if name == "x86-rapl":  # on a machine the class holds links, which zeus and codecarbon go through
        shutil.rmtree(root / "sys/class/powercap/intel-rapl")
        (root / "sys/class/powercap/intel-rapl").symlink_to("../../devices/virtual/powercap/intel-rapl")
        (root / RAPL / "intel-rapl/subsystem").symlink_to("../../../../class/powercap")
    return root


class Counters(threading.Thread):
    """Moves a fixture's RAPL counters as a machine at 15.05 W would, until `stop`; the wrap included."""

    def __init__(self, root: Path) -> None:
        super().__init__(daemon=True)
        package = root / RAPL / "intel-rapl/intel-rapl:0"
        self.files = {package / zone / "energy_uj": watts for zone, watts in RAPL_STEPS_W.items()}
        self.files[root / RAPL / "intel-rapl/intel-rapl:1/energy_uj"] = PSYS_W
        self.files[root / RAPL / "intel-rapl-mmio/intel-rapl-mmio:0/energy_uj"] = RAPL_STEPS_W[""]
        self.starts = dict.fromkeys(self.files, 200_000_000_000)
        self.stop = threading.Event()

    def run(self) -> None:
        began = time.monotonic()
        while not self.stop.wait(0.005):
            for path, watts in self.files.items():
                temporary = path.with_name("energy_uj.new")
                temporary.write_text(f"{self.starts[path] + int((time.monotonic() - began) * watts * 1e6)}\n")
                os.replace(temporary, path)


def edgetune_total(root: Path, moving: bool) -> dict[str, Any]:
    """What edgetune reports."""
    sys.path.insert(0, str(ROOT))
    from edgetune.device.board import identify_entry
    from edgetune.device.energy import EnergyMeter
    from edgetune.device.power import describe_power, find_power
    from edgetune.device.system import System

    system = System(root)
    board, entry = identify_entry(system)
    source = find_power(system, board, entry)
    power = describe_power(system, source, entry)
    total_w = power.total_w
    if moving:
        with EnergyMeter(source) as meter, meter.window() as window:
            time.sleep(WINDOW_S)
        total_w = window.watts
    how = (power.scope or "") + ("" if power.measured or total_w is None else ", modelled")
    return {"total_w": total_w, "how": how or "unknown"}


def zeus_total() -> dict[str, Any]:
    """Run inside the namespace."""
    if Path("/sys/class/powercap/intel-rapl").exists():
        from zeus.device.cpu.rapl import RAPLCPUs

        cpus = RAPLCPUs().cpus
        before, began = [cpu.get_total_energy_consumption() for cpu in cpus], time.monotonic()
        time.sleep(WINDOW_S)
        after, seconds = [cpu.get_total_energy_consumption() for cpu in cpus], time.monotonic() - began
        parts = [
            ((new.cpu_mj - old.cpu_mj) + ((new.dram_mj or 0) - (old.dram_mj or 0))) / 1000 / seconds
            for new, old in zip(after, before, strict=True)
        ]
        return {"total_w": sum(parts), "how": f"{len(parts)} CPUs: {', '.join(f'{part:.2f} W' for part in parts)}"}
    from zeus.device.soc.jetson import Jetson

    found = Jetson._discover_available_metrics(Jetson.__new__(Jetson))
    rails = {name.removesuffix("_power_mw"): way.measure_power() / 1000 for name, way in found.items()}
    said = ", ".join(f"{name} {watts:.3f}" for name, watts in sorted(rails.items()))
    return {"total_w": rails.get("total"), "how": f"rails: {said}" if rails else "no rail found"}


def jetson_stats_total() -> dict[str, Any]:
    """Run inside the namespace."""
    from jtop.core.power import PowerService

    status = PowerService().get_status()
    if not status:
        return {"total_w": None, "how": "no sensor found"}
    name = status["tot"].get("name")
    rails = ", ".join(sorted(status["rail"]))
    return {"total_w": status["tot"]["power"] / 1000, "how": name or f"sum of {rails}"}


def codecarbon_total(cores: int, machine: str, load: float) -> dict[str, Any]:
    """Run inside the namespace."""
    import platform

    import psutil

    platform.machine = lambda: machine
    psutil.cpu_count = lambda logical=True: cores
    from codecarbon import OfflineEmissionsTracker
    from codecarbon.external.hardware import SystemCPULoadMeter

    SystemCPULoadMeter.percent = lambda meter: load
    tracker = OfflineEmissionsTracker(
        country_iso_code="DEU", measure_power_secs=1, save_to_file=False, log_level="critical", allow_multiple_runs=True
    )
    tracker.start()
    time.sleep(2.5)
    tracker.stop()
    data = tracker.final_emissions_data
    modes = sorted({type(part).__name__ + ":" + str(getattr(part, "_mode", "")) for part in tracker._hardware})
    return {
        "total_w": data.cpu_power + data.gpu_power + data.ram_power,
        "how": f"CPU {data.cpu_power:.2f} + GPU {data.gpu_power:.2f} + RAM {data.ram_power:.2f} W ({', '.join(modes)})",
    }


def in_namespace(python: str, root: Path, tool: str) -> dict[str, Any]:
    """Run one tool on one tree."""
    binds = [(root / path, Path("/") / path) for path in ("sys", "proc/cpuinfo", "proc/meminfo")]
    mounts = " && ".join(f"mount --bind '{source}' {target}" for source, target in binds if source.exists())
    cores = (root / "proc/cpuinfo").read_text().count("processor\t") if (root / "proc/cpuinfo").exists() else 4
    machine = (root / "cmd/uname--m.txt").read_text().strip()
    load = 50 if (root / "proc/stat").exists() else 0
    command = f"{mounts} && exec '{python}' '{__file__}' --child {tool} --cores {max(cores, 1)} --machine {machine}"
    command += f" --load {load}"
    done = subprocess.run(
        ["unshare", "--mount", "--net", "--propagation", "private", "sh", "-c", command],
        capture_output=True, text=True, timeout=120, cwd="/", check=False,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        error = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return {"total_w": None, "how": f"fails: {error[:160]}"}
    answer: dict[str, Any] = json.loads(lines[-1])
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default=sys.executable, help="an interpreter that has the three tools")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/sensor_tools.json")
    parser.add_argument("--boards", nargs="+", default=list(BOARDS), choices=list(BOARDS), metavar="FIXTURE")
    parser.add_argument("--child", choices=TOOLS)
    parser.add_argument("--cores", type=int, default=4)
    parser.add_argument("--machine", default="aarch64")
    parser.add_argument("--load", type=float, default=0.0)
    options = parser.parse_args()
    if options.child:
        run = {"zeus": zeus_total, "jetson-stats": jetson_stats_total}.get(options.child)
        print(json.dumps(run() if run else codecarbon_total(options.cores, options.machine, options.load)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.boards:
            title, true_w, what = BOARDS[name]
            root = prepare(name, Path(folder))
            moving = Counters(root) if name == "x86-rapl" else None
            if moving:
                moving.start()
                time.sleep(0.1)
            row: dict[str, Any] = {"board": title, "fixture": name, "true_w": true_w, "what": what}
            row["edgetune"] = edgetune_total(root, moving is not None)
            for tool in TOOLS:
                row[tool] = in_namespace(options.python, root, tool)
            if moving:
                moving.stop.set()
            rows.append(row)
            print(json.dumps(row), file=sys.stderr)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"versions": versions(options.python), "rows": rows}, indent=2) + "\n")
    print("| board | true total | " + " | ".join(("edgetune", *TOOLS)) + " |\n|" + "---|" * 6)
    for row in rows:
        cells = [row["board"], watts(row["true_w"]) + f" ({row['what']})"]
        cells += [f"{watts(row[tool]['total_w'])}: {row[tool]['how']}" for tool in ("edgetune", *TOOLS)]
        print("| " + " | ".join(cells) + " |")


def watts(value: float | None) -> str:
    """Milliwatt precision, or a dash."""
    return "—" if value is None else f"{value:.3f} W"


def versions(python: str) -> dict[str, str]:
    """Which versions were run."""
    code = f"import importlib.metadata as m, json; print(json.dumps({{n: m.version(n) for n in {TOOLS!r}}}))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    main()
