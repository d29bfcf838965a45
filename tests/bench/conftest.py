"""A tiny data set, and one real series that several tests look at."""

from __future__ import annotations

import subprocess
from pathlib import Path

import msgspec
import pytest

from edgetune.bench import series as rooms_series
from edgetune.bench.records import Bench
from edgetune.bench.synthetic import make_images
from tests.bench.facts import Told, command


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretended runs need no rate of the machine: a process that multiplies for a second."""
    monkeypatch.setattr(rooms_series, "measure_gemm", lambda threads: 1e11)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bench") / "photos"
    make_images(root, image_size=32, classes=3, train=18, val=12, seed=0)
    return root


@pytest.fixture(scope="session")
def series(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Told:
    """One repetition of eager full, our full, and a recipe that fails."""
    pytest.importorskip("timm", reason="timm is not installed: edgetune[bench] brings it")
    out = tmp_path_factory.mktemp("series") / "out"
    recipe = out.parent / "recipe.json"
    recipe.write_text('{"starved": {"method": "full", "arguments": ["--memory", "10MB"]}}')
    line = command(photos, out, "--recipe", str(recipe), "--methods", "starved,eager-full,full", "--repetitions", "1")
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Told(out, done.stdout, msgspec.json.decode((out / "bench.json").read_bytes(), type=Bench))
