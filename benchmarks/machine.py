"""What every line of evidence records about where it came from."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Processor, cores, memory, kernel and the versions that matter."""
    processor = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    versions = {}
    for name in ("torch", "numpy", "timm", "transformers", "onnxruntime"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=RESULTS.parent, check=False
    )
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": versions,
        "commit": commit.stdout.strip(),
    }


def append(name: str, record: dict[str, Any]) -> None:
    """Add one line to `results/<name>.jsonl`."""
    RESULTS.mkdir(exist_ok=True)
    stamped = {"at": datetime.now(timezone.utc).isoformat(timespec="seconds"), **record, "machine": machine()}
    with (RESULTS / f"{name}.jsonl").open("a") as log:
        log.write(json.dumps(stamped) + "\n")


def lines(name: str) -> list[dict[str, Any]]:
    """All lines of `results/<name>.jsonl`, oldest first."""
    path = RESULTS / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
