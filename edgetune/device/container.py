"""What a container hides of its board, and the flag that would show it.

Docker masks /sys/firmware, where the device tree lives, and mounts none of the host's /etc; the GPU and the power chip
are devices that have to be handed in. Everything else that edgetune reads (/proc, /sys with its sensors, the limit of
the container's memory) is there without a flag.

Sources: moby issue 43419 (the device tree, and that it can be mounted elsewhere), NVIDIA's container runtime, the
Raspberry Pi's mailbox device, jetson-containers `run.sh`.
"""

from __future__ import annotations

from edgetune.device.board import DEVICE_TREES
from edgetune.device.catalogue import BoardEntry
from edgetune.device.power.pmic import DEVICES as POWER_CHIP
from edgetune.device.system import System
from edgetune.schema import Board, Memory, Modes

_MARKS = ("/.dockerenv", "/run/.containerenv")
_GPU = ("/dev/nvhost-gpu", "/dev/nvgpu", "/dev/nvmap", "/dev/nvidia0")
_ARM = {"aarch64", "arm64", "armv7l"}


def in_container(system: System) -> bool:
    """Whether Docker, Podman or their kin run this process."""
    return any(system.exists(mark) for mark in _MARKS)


def container_advice(system: System, board: Board, entry: BoardEntry, memory: Memory, modes: Modes) -> list[str]:
    """What this container lacks, each with the flag to start it with; empty outside of one."""
    if not in_container(system):
        return []
    found = []
    if board.arch in _ARM and not any(system.exists(f"{base}/compatible") for base in DEVICE_TREES):
        found.append(
            "This container hides the device tree, which names the board: start it with"
            f" -v /sys/firmware/devicetree/base:{DEVICE_TREES[-1]}:ro."
        )
    if entry.kind == "jetson":
        if not any(system.exists(path) for path in _GPU):
            found.append("This container has no GPU: start it with --runtime nvidia.")
        if board.l4t is None:
            found.append(
                "This container does not say which JetPack the board has: start it with"
                " -v /etc/nv_tegra_release:/etc/nv_tegra_release:ro."
            )
        if modes.current is None:
            found.append(
                "This container hides the power mode: start it with -v /etc/nvpmodel.conf:/etc/nvpmodel.conf:ro"
                " -v /var/lib/nvpmodel:/var/lib/nvpmodel:ro."
            )
    if entry.power.sensor == "rpi-pmic" and not any(system.exists(path) for path in POWER_CHIP):
        found.append("This container hides the board's power chip: start it with --device /dev/vcio.")
    if memory.limit_bytes is None and memory.limit_enforced is not False:
        found.append(
            "This container has no memory limit of its own: with --memory 2g (or another size) others on the board are"
            " safe from it, and edgetune plans inside it."
        )
    return found
