"""Processor time that planning takes: the whole of `make_plan`, caches empty, the trade-off included.

    python benchmarks/plan_time.py run
    python benchmarks/plan_time.py table

Of each model the slowest of: no cap, memory caps of 0.5 (infeasible) to 2.5 times the smallest feasible room, caps of
30 s and 50 J on 100 epochs, six blocks by hand, a batch of 1,000, `full` and `alast`; each the best of three, since
others may come between. The profile is the one that comes with the project (`profiles/x86-epyc-2cores.json`). One line
per model goes to `results/plan_time.jsonl`.
"""

from __future__ import annotations

import argparse
import functools
import gc
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import append, lines

from edgetune import schema
from edgetune.errors import InfeasibleError
from edgetune.plan import make_plan
from edgetune.schema import Profile

NAME = "plan_time"
MODELS = ("vit_nano_patch8_64", "vit_tiny_patch16_224", "vit_base_patch16_224", "vit_large_patch16_384")
ROOMS = (0.5, 1.0, 1.2, 1.6, 2.5)
PROFILE = Path(__file__).parent.parent / "profiles" / "x86-epyc-2cores.json"
CLASSES, IMAGES = 4, 500


def forget() -> None:
    """Empty every cache, so that planning starts as it does in a fresh process."""
    for found in gc.get_objects():
        if isinstance(found, functools._lru_cache_wrapper):
            found.cache_clear()


def cases(data: Path, common: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Arguments of `make_plan` by what they are."""
    profile: Profile = common["profile"]
    runtime = profile.compute.runtime_bytes
    assert runtime is not None
    least: int | None = None
    try:
        make_plan(data, memory_bytes=1 << 20, **common)
    except InfeasibleError as error:
        least = error.nearest.memory_bytes
    assert least is not None
    found: dict[str, dict[str, Any]] = {"no cap": {}}
    found |= {f"room {room:g}": {"memory_bytes": int(runtime + room * (least - runtime))} for room in ROOMS}
    found["30 s and 50 J"] = {"time_s": 30.0, "energy_j": 50.0, "power_w": 10.0, "epochs": 100}
    found["six blocks"] = {"levers": ["trained_blocks=6"]}
    found["a batch of 1,000"] = {"batch_size": 1000}
    return found | {method: {"method": method} for method in ("full", "alast")}


def measure(data: Path, model: str) -> dict[str, float]:
    """Seconds of each case."""
    common: dict[str, Any] = {
        "model": model,
        "profile": schema.load(PROFILE, Profile),
        "engine": "torch",
        "elsewhere": True,
    }
    took: dict[str, float] = {}
    for name, arguments in cases(data, common).items():
        spent = []
        for _ in range(3):
            forget()
            began = time.process_time()
            try:
                make_plan(data, **(common | arguments))
            except InfeasibleError:
                pass
            spent.append(time.process_time() - began)
        took[name] = min(spent)
    return took


def table() -> None:
    """Markdown: the slowest case of each model, newest line."""
    print("| model | slowest case | here, ms | times 8, ms |\n|---|---|---:|---:|")
    for model, line in {line["model"]: line for line in lines(NAME)}.items():
        name, slowest = max(line["seconds"].items(), key=lambda item: item[1])
        print(f"| `{model}` | {name} | {1000 * slowest:.0f} | {8000 * slowest:,.0f} |")


def main() -> None:
    """Parse and dispatch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    if parser.parse_args().what == "table":
        table()
        return
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "images"
        for index in range(IMAGES):
            folder = data / ("val" if index % 5 == 0 else "train") / f"class-{index % CLASSES}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{index}.jpg").touch()
        for model in MODELS:
            took = measure(data, model)
            append(NAME, {"model": model, "seconds": took})
            print(model, {name: round(seconds, 3) for name, seconds in took.items()}, flush=True)


if __name__ == "__main__":
    main()
