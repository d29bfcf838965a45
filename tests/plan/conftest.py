"""A folder of images that nobody opens, and profiles of machines that never were."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgetune import schema
from edgetune.device.board import identify
from edgetune.device.system import System
from edgetune.model.spec import ViTSpec
from edgetune.schema import BlockCost, Board, Compute, Memory, Modes, Power, Profile, TensorCost

GIB = 1 << 30


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes, 40 training and 10 validation images, all of them empty files."""
    for part, count in (("train", 20), ("val", 5)):
        for name in ("cat", "dog"):
            folder = tmp_path / "photos" / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                (folder / f"{index}.jpg").touch()
    return tmp_path / "photos"


def make_profile(
    *, available_bytes: int = 8 * GIB, gflops: float = 50.0, watts: float | None = None, runtime_bytes: int = 300 << 20
) -> Profile:
    """A machine whose blocks all run at one rate."""
    costs = []
    for width, heads in ((192, 3), (384, 6)):
        for tokens in (50, 197):
            flops = ViTSpec(name="probe", width=width, depth=1, heads=heads, patch_size=1).block_flops(tokens)
            for part in ("forward", "pass_gradient", "weight_gradient"):
                seconds = 4 * getattr(flops, part) / (gflops * 1e9)
                costs.append(
                    BlockCost(
                        width=width,
                        heads=heads,
                        tokens=tokens,
                        batch_size=4,
                        lever="eager",
                        part=part,
                        seconds=seconds,
                    )
                )
    tensors = [
        TensorCost(operation="update", lever="autograd/adamw", numbers=10**6, seconds=7e6 * 4 / 5e9),
        TensorCost(operation="keep", lever="int8", numbers=10**6, seconds=2e6 * 4 / 5e9),
    ]
    return Profile(
        board=Board(name="Test board", family=identify(System()).family),
        memory=Memory(total_bytes=None, available_bytes=available_bytes),
        power=Power(source="test", scope="module", total_w=watts, measured=watts is not None),
        modes=Modes(),
        throttle={},
        compute=Compute(
            engine="torch",
            device="cpu",
            threads=2,
            gemm_flops={"fp32": 2 * gflops * 1e9},
            copy_bytes_per_s=5e9,
            runtime_bytes=runtime_bytes,
            block_costs=costs,
            tensor_costs=tensors,
        ),
        warnings=[],
        edgetune_version="0",
        created=schema.now(),
    )
