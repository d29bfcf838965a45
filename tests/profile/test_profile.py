"""The profile of a foreign root: small, quick, complete, and honest about what it does not know."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from edgetune import schema
from edgetune.errors import InputError
from edgetune.profile import profile_device
from edgetune.profile.page import print_profile
from edgetune.schema import BlockCost, Compute, Profile
from tests.device.conftest import FIXTURES


def empty_root(folder: Path) -> Path:
    (folder / "proc").mkdir()
    (folder / "proc" / "meminfo").write_text("MemTotal:  4000000 kB\nMemAvailable:  3000000 kB\n")
    return folder


def page(profile: Profile, width: int = 80) -> str:
    out = io.StringIO()
    print_profile(profile, Console(file=out, width=width, highlight=False))
    return out.getvalue()


def test_a_foreign_root_is_read_and_not_probed(tmp_path: Path) -> None:
    profile = profile_device(root=empty_root(tmp_path))
    assert profile.memory.total_bytes == 4_000_000 * 1024
    assert profile.power.total_w is None
    assert profile.power.idle_w is None
    assert profile.compute.gemm_flops == {}
    assert profile.compute.probe_error is not None
    assert "--root" in profile.compute.probe_error


def test_an_empty_root_is_no_crash(tmp_path: Path) -> None:
    profile = profile_device(root=tmp_path)
    assert profile.memory.total_bytes is None
    assert "Memory" in page(profile)


def test_a_missing_root_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--root .*missing is not a folder"):
        profile_device(root=tmp_path / "missing")


def test_profiles_round_trip(tmp_path: Path) -> None:
    profile = profile_device(root=empty_root(tmp_path), power_w=4.0)
    schema.save(profile, tmp_path / "profile.json")
    assert schema.load(tmp_path / "profile.json", Profile) == profile
    raw = json.loads((tmp_path / "profile.json").read_bytes())
    assert raw["schema"] == "edgetune/profile/1"
    assert {"board", "memory", "power", "modes", "throttle", "compute", "warnings", "created"} <= set(raw)


def test_the_page_fits_eighty_columns_and_names_what_is_missing(tmp_path: Path) -> None:
    profile = profile_device(root=empty_root(tmp_path))
    text = page(profile)
    assert max(map(len, text.splitlines())) <= 80
    for word in ("Limits", "Measured", "Not known", "free now", "--power"):
        assert word in text


def test_the_page_says_what_the_watts_stand_for() -> None:
    text = page(profile_device(root=FIXTURES / "orin-nano-super-jp6"))
    assert max(map(len, text.splitlines())) <= 80
    for word in ("5.25 W", "3.38 s", "total = VDD_IN", "module, measured, from ina3221"):
        assert word in text
    assert "Zero 2 W has no power sensor" in " ".join(page(profile_device(root=FIXTURES / "rpi-zero2w")).split())


def test_the_page_shows_what_was_measured(tmp_path: Path) -> None:
    import msgspec

    parts = [
        BlockCost(
            width=192,
            heads=3,
            tokens=197,
            batch_size=4,
            lever="eager",
            part=part,  # type: ignore[arg-type]
            seconds=seconds,
            saved_bytes=4 << 20,
        )
        for part, seconds in (("forward", 0.004), ("pass_gradient", 0.008), ("weight_gradient", 0.006))
    ]
    compute = Compute(
        engine="torch",
        engine_version="2.9",
        device="cpu",
        threads=4,
        cores=4,
        gemm_flops={"fp32": 5e10, "bf16": 4e9, "fp16": None},
        copy_bytes_per_s=6e9,
        runtime_bytes=300 << 20,
        block_costs=parts,
    )
    text = page(msgspec.structs.replace(profile_device(root=empty_root(tmp_path)), compute=compute))
    for word in ("50 GFLOP/s", "6 GB/s", "300 MiB", "1 + 2 + 1.5 ms", "3.00 MiB", "bf16: slower than fp32"):
        assert word in text
    assert "fp16" not in text


def test_reading_a_root_stays_small_and_brings_no_torch(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom edgetune.profile import profile_device\n"
        f"profile_device(root={str(empty_root(tmp_path))!r})\n"
        "from edgetune.measure import PeakMeter\n"
        "print([name for name in ('torch', 'numpy', 'rich', 'PIL') if name in sys.modules])\n"
        "print(PeakMeter().current_bytes())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    modules, resident = done.stdout.splitlines()
    assert modules == "[]"
    if resident != "None":
        assert int(resident) < 40 << 20
