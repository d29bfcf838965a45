"""What a person could change about this machine before a run. edgetune itself changes nothing.

Every sentence says what was found and what to do about it. Sources: jetson-containers `docs/setup.md` (desktop, zram),
NVIDIA's CUDA for Tegra note and users' reports (GPU memory and control groups), pi-gen issue 917 (memory limits on
Raspberry Pi OS), pytorch issues 132032, 174344 and 176993 (illegal instructions on Armv8.0).
"""

from __future__ import annotations

from collections.abc import Mapping

from edgetune.device.board import parse_cpuinfo
from edgetune.device.catalogue import BoardEntry
from edgetune.device.container import container_advice
from edgetune.device.system import System
from edgetune.schema import Board, Memory, Modes
from edgetune.units import format_size

_SMALL_SHM_BYTES = 256 << 20  # Docker gives 64 MiB
_ARM = {"aarch64", "arm64"}
_OLD_PYTHON = {"32": ("4", "3.6"), "34": ("5", "3.8"), "35": ("5", "3.8")}  # JetPack and its Python


def advice(
    system: System,
    board: Board,
    entry: BoardEntry,
    memory: Memory,
    modes: Modes,
    throttle: Mapping[str, int | None],
) -> list[str]:
    """What to change, most consequential first."""
    return [
        *_software(system, board),
        *_supply_and_heat(throttle),
        *container_advice(system, board, entry, memory, modes),
        *_limits(system, entry, memory),
        *_speed(board, entry, modes),
    ]


def _software(system: System, board: Board) -> list[str]:
    found = []
    features = parse_cpuinfo(system.text("/proc/cpuinfo") or "").features
    if board.arch in _ARM and "asimd" in features and "atomics" not in features:
        found.append(
            "This CPU (Armv8.0) lacks the atomic instructions that the wheels of torch 2.4.0 and 2.10.0 use: they end"
            " in an illegal instruction on import; take another release."
        )
    # by the major release of Linux for Tegra, since a JetPack's name may be unknown
    jetpack, python = _OLD_PYTHON.get((board.l4t or "").partition(".")[0], (None, None))
    if python and not system.live:
        found.append(
            f"JetPack {board.jetpack or jetpack} comes with Python {python}, too old for edgetune: on the board itself"
            " run it in a container with its own Python, or profile with --root as here."
        )
    return found


def _supply_and_heat(throttle: Mapping[str, int | None]) -> list[str]:
    found = []
    if throttle.get("under_voltage_now") or throttle.get("under_voltage_alarm_now"):
        found.append(
            "The supply voltage is too low right now and clocks are cut: use a stronger supply or a shorter cable."
        )
    elif throttle.get("under_voltage_since_boot"):
        found.append("The supply voltage was too low at times since boot: use a stronger supply or a shorter cable.")
    hot = [name for name in ("throttled", "soft_temperature_limit", "frequency_capped") if throttle.get(f"{name}_now")]
    past = [name for name in ("throttled", "soft_temperature_limit") if throttle.get(f"{name}_since_boot")]
    if hot:
        found.append(
            f"Clocks are cut right now ({', '.join(hot).replace('_', ' ')}): let the board cool, or cool it better."
        )
    elif past:
        found.append(
            f"Clocks were cut since boot ({', '.join(past).replace('_', ' ')}): a fan or heat sink keeps a run even."
        )
    alerts = [key.removesuffix("_throttle_alert_now") for key in throttle if key.endswith("_throttle_alert_now")]
    active = [name for name in alerts if throttle[f"{name}_throttle_alert_now"]]
    if active:
        found.append(f"The board throttles right now ({', '.join(active)}): let it cool, or raise the fan's profile.")
    events = sum(value or 0 for key, value in throttle.items() if key.startswith("oc") and key.endswith("_count"))
    if events and any(key.startswith("oc3_") for key in throttle):
        found.append(
            f"Over-current has cut the module's clocks {events} times since boot, about 1 ms each, which clock readings"
            " do not show: compare the step time of a lower power mode."
        )
    return found


def _limits(system: System, entry: BoardEntry, memory: Memory) -> list[str]:
    found = []
    if memory.limit_enforced is False and entry.kind == "raspberry-pi":
        found.append(
            "To have memory limits enforced, append `cgroup_enable=memory cgroup_memory=1` to the line in"
            " /boot/firmware/cmdline.txt and reboot."
        )
    if memory.limit_bytes is not None and memory.limit_enforced and memory.unified and entry.cuda:
        found.append(
            f"The limit of {format_size(memory.limit_bytes)} does not hold CUDA memory, which is the machine's own:"
            " give edgetune a --memory cap, which counts what torch's allocator holds there too, but not the CUDA"
            " context (never tried on a Jetson)."
        )
    if memory.shm_bytes is not None and memory.shm_bytes < _SMALL_SHM_BYTES:
        found.append(
            f"/dev/shm has {format_size(memory.shm_bytes)}, little for loader workers: start the container with"
            " --shm-size=1g or train with --workers 0."
        )
    if entry.kind == "jetson" and memory.zram_bytes:
        found.append(
            f"{format_size(memory.zram_bytes)} of swap is compressed memory, which competes with training: disable"
            " nvzramconfig.service and put a swap file on an NVMe disk."
        )
    if system.glob("/tmp/.X11-unix/X[0-9]*") or system.glob("/run/user/*/wayland-[0-9]"):
        found.append(
            "A desktop is running; without it some 250 to 800 MB more are free: `sudo systemctl set-default"
            " multi-user.target` and reboot."
        )
    return found


def _speed(board: Board, entry: BoardEntry, modes: Modes) -> list[str]:
    found = []
    fastest = next((name for name in modes.available if name.startswith("MAXN")), None)
    if entry.kind == "jetson" and modes.current and fastest and modes.current != fastest:
        found.append(
            f"Power mode {modes.current} holds the clocks below {fastest}: `sudo nvpmodel -m` changes it, some changes"
            " need a reboot, and a faster run often needs less energy in all."
        )
    if modes.governor == "powersave" and board.arch in _ARM:
        found.append(
            "The governor powersave keeps the CPU at its lowest clock: ondemand or schedutil let it rise with load."
        )
    return found
