"""The requirement sets exist for the boards: aarch64, Python 3.10 to 3.13, and no CUDA packages on a Pi.

uv evaluates markers for the target, which pip's `--platform` does not. Only metadata is fetched.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.project.facts import ROOT, requirements

UV = Path(sysconfig.get_path("scripts")) / "uv"
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
CUDA = re.compile(r"^(nvidia-|cuda-|triton)")

pytestmark = pytest.mark.skipif(not UV.exists(), reason="uv is not installed: make test installs it")


def resolve(*arguments: str, python: str, platform: str = "aarch64-manylinux_2_28") -> dict[str, str]:
    """Names and versions that a machine of `platform` would install; skips where the index can't be reached."""
    command = [str(UV), "pip", "compile", "--no-config", "--quiet", "--no-header", "--no-annotate", *arguments]
    command += ["--python-platform", platform, "--python-version", python, "--only-binary", ":all:"]
    # Metadata answers for a Python that is not here; downloading that Python would only cost time.
    environment = os.environ | {"UV_PYTHON_DOWNLOADS": "never", "UV_PYTHON": sys.executable}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode and re.search(
        r"error sending request|dns error|Failed to fetch|Connection refused", done.stderr
    ):
        pytest.skip("the package index can't be reached")
    assert done.returncode == 0, done.stderr
    pins = (line.split(";")[0].strip().split("==") for line in done.stdout.splitlines() if "==" in line)
    return {name.split("[")[0]: version for name, version in pins}


@pytest.mark.parametrize("python", PYTHONS)
def test_both_engines_resolve_on_a_pi_without_cuda(python: str) -> None:
    # One set holds core, torch and onnx: if it resolves, so does each of them.
    pins = resolve(
        "pyproject.toml", "--extra", "torch", "--extra", "onnx", "-c", "requirements/cpu-aarch64.txt", python=python
    )
    assert {"msgspec", "numpy", "psutil", "rich", "safetensors", "typer"} <= pins.keys()
    assert {"torch", "torchvision", "onnx", "onnxruntime", "pillow"} <= pins.keys()
    assert ("tomli" in pins) == (python == "3.10")
    assert not [name for name in pins if CUDA.match(name)]


@pytest.mark.parametrize("python", PYTHONS)
def test_the_engine_without_torch_brings_none(python: str) -> None:
    pins = resolve("pyproject.toml", "--extra", "onnx", python=python)
    assert {"onnx", "onnxruntime", "pillow"} <= pins.keys()
    assert not [name for name in pins if CUDA.match(name) or name.startswith("torch")]


@pytest.mark.parametrize("python", PYTHONS)
def test_the_core_is_small(python: str) -> None:
    pins = resolve("pyproject.toml", python=python)
    assert not {"torch", "torchvision", "onnx", "onnxruntime", "pillow", "huggingface-hub"} & pins.keys()
    assert len(pins) <= 24, sorted(pins)


def test_the_cuda_check_can_fail() -> None:
    # Without the constraint the index's newest aarch64 torch brings the CUDA stack: this is what the constraint is for.
    pins = resolve("pyproject.toml", "--extra", "torch", python="3.12")
    assert [name for name in pins if CUDA.match(name)]


def test_jetpack_6_keeps_its_own_torch() -> None:
    wanted = [Requirement(line) for line in requirements("torch")]
    jetpack_6 = {"platform_machine": "aarch64", "platform_release": "5.15.148-tegra", "python_version": "3.10"}
    active = [r for r in wanted if r.marker is None or r.marker.evaluate(jetpack_6)]
    for version in ("2.5.0a0+872d972e41.nv24.8", "2.8.0", "2.9.1"):
        assert all(r.specifier.contains(version, prereleases=True) for r in active if r.name == "torch")


@pytest.mark.parametrize(
    ("machine", "kernel", "capped"),
    [
        ("aarch64", "6.12.47+rpt-rpi-2712", True),  # Raspberry Pi OS
        ("aarch64", "6.8.0-1031-raspi", True),  # Ubuntu on a Pi
        ("aarch64", "5.15.148-tegra", True),  # JetPack 6
        ("aarch64", "6.8.12-tegra", False),  # JetPack 7: its driver runs the index's CUDA wheels
        ("aarch64", "6.8.0-1015-nvidia-64k", False),  # Grace
        ("x86_64", "6.12.47-amd64", False),
    ],
)
def test_metadata_caps_torch_on_boards_that_cannot_use_cuda_13(machine: str, kernel: str, capped: bool) -> None:
    here = {"platform_machine": machine, "platform_release": kernel, "python_version": "3.11"}
    wanted = [Requirement(line) for line in requirements("torch")]
    active = [r for r in wanted if r.name == "torch" and (r.marker is None or r.marker.evaluate(here))]
    assert active
    assert all(r.specifier.contains("2.14.1") for r in active) is not capped
