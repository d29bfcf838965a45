"""What edgetune suggests: each sentence where it belongs, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgetune.device.board import identify_entry
from edgetune.device.memory import read_memory
from edgetune.device.modes import read_modes
from edgetune.device.power import find_power
from edgetune.device.system import System
from edgetune.device.throttle import advice, read_throttle
from tests.device.conftest import OpenBoard


def given_advice(system: System) -> str:
    board, entry = identify_entry(system)
    return "\n".join(
        advice(system, board, entry, read_memory(system, entry), read_modes(system), read_throttle(system))
    )


@pytest.mark.parametrize(
    ("name", "files", "phrase"),
    [
        ("orin-nano-super-jp6", {}, "Power mode 25W holds the clocks below MAXN_SUPER"),
        ("orin-nano-super-jp6", {}, "nvzramconfig"),
        ("orin-nano-super-jp6", {}, "Over-current"),
        ("orin-nano-super-jp6", {"tmp/.X11-unix/X0": ""}, "A desktop is running"),
        ("xavier-nx-jp5", {}, "Python 3.8"),
        ("nano-jp4", {}, "Python 3.6"),
        (
            "nano-jp4",
            {"etc/nv_tegra_release": "# R32 (release), REVISION: 99.9, GCID: 1"},
            "Python 3.6",
        ),  # unknown name
        ("xavier-nx-jp5", {"etc/nv_tegra_release": "# R35 (release), REVISION: 9.9, GCID: 1"}, "Python 3.8"),
        ("rpi4", {}, "illegal instruction"),
        ("rpi5", {}, "cgroup_enable=memory"),
        ("cm4", {}, "supply voltage is too low right now"),
        ("rpi4", {"cmd/vcgencmd-get_throttled.txt": "throttled=0x10000"}, "too low at times since boot"),
        ("rpi4", {}, "Clocks were cut since boot"),
        ("container-v2", {}, "does not hold CUDA memory"),
        ("container-v2", {}, "--shm-size=1g"),
        ("container-v2", {}, "--runtime nvidia"),
        ("container-v2", {}, "-v /etc/nv_tegra_release:/etc/nv_tegra_release:ro"),
        ("container-v2", {}, "-v /etc/nvpmodel.conf:/etc/nvpmodel.conf:ro -v /var/lib/nvpmodel:/var/lib/nvpmodel:ro"),
        ("container-v2", {"sys/firmware": None}, "-v /sys/firmware/devicetree/base:/run/device-tree:ro"),
        ("container-v1", {}, "with --memory 2g"),
        ("rpi5", {"run/.containerenv": ""}, "start it with --device /dev/vcio"),
        ("orin-nx-jp6", {"sys/class/thermal/cooling_device0/cur_state": "1"}, "throttles right now (cpu)"),
        ("rpi5", {"sys/devices/system/cpu/cpufreq/policy0/scaling_governor": "powersave"}, "governor powersave"),
    ],
)
def test_said_where_it_helps(open_board: OpenBoard, name: str, files: dict[str, str], phrase: str) -> None:
    assert phrase in given_advice(open_board(name, files=files))


@pytest.mark.parametrize(
    ("name", "phrase"),
    [
        ("agx-orin-jp6", "Power mode"),  # is in MAXN
        ("orin-nano-super-jp6", "desktop"),
        ("rpi5", "illegal instruction"),  # has the instructions
        ("x86-rapl", "illegal instruction"),
        ("x86-rapl", "powersave"),  # the ordinary governor there
        ("rpi4", "cgroup_enable"),  # is switched on
        ("rpi5", "supply voltage"),
        ("thor-t5000-jp7", "nvzramconfig"),
        ("container-v1", "CUDA memory"),
        ("container-v2", "with --memory 2g"),  # has a limit
        ("container-v2", "device tree"),  # sees it
        ("rpi5", "container"),
        ("orin-nano-super-jp6", "container"),
    ],
)
def test_not_said_where_it_would_be_wrong(open_board: OpenBoard, name: str, phrase: str) -> None:
    assert phrase not in given_advice(open_board(name))


@pytest.mark.parametrize(
    ("name", "files", "phrase"),
    [
        ("container-v2", {"dev/nvmap": ""}, "--runtime nvidia"),
        ("container-v2", {"etc/nv_tegra_release": "# R36 (release), REVISION: 4.4, GCID: 1"}, "nv_tegra_release"),
        ("rpi5", {".dockerenv": "", "dev/vcio": ""}, "--device /dev/vcio"),
    ],
)
def test_what_a_flag_provides_is_no_longer_asked_for(
    open_board: OpenBoard, name: str, files: dict[str, str], phrase: str
) -> None:
    assert phrase not in given_advice(open_board(name, files=files))


@pytest.mark.parametrize("name", ["rpi5", "orin-nano-super-jp6", "agx-orin-jp6", "rpi4"])
def test_a_container_with_the_flags_finds_what_the_board_does(open_board: OpenBoard, tmp_path: Path, name: str) -> None:
    bare = open_board(name)
    hidden: dict[str, str | bytes | None] = {".dockerenv": "", "sys/firmware": None}
    blind = open_board(name, files=hidden)
    shown = {
        f"run/device-tree/{part}": bare.read_bytes(f"/sys/firmware/devicetree/base/{part}")
        for part in ("compatible", "model")
    }
    seeing = open_board(name, files={**hidden, **shown})
    board, entry = identify_entry(bare)
    found, found_entry = identify_entry(seeing)
    assert (found.name, found.family, found.module) == (board.name, board.family, board.module)
    assert "device tree" in given_advice(blind)
    assert "device tree" not in given_advice(seeing)
    kept, source = find_power(bare, board, entry), find_power(seeing, found, found_entry)
    assert kept is not None
    assert source is not None
    assert (source.name, source.read().total_w) == (kept.name, kept.read().total_w)


def test_a_containers_own_limit_is_found(open_board: OpenBoard) -> None:
    memory = read_memory(open_board("container-v2"))
    assert (memory.limit_bytes, memory.limit_enforced) == (2 << 30, True)


def test_nothing_is_suggested_where_nothing_is_known(open_board: OpenBoard) -> None:
    assert given_advice(open_board("empty")) == ""


def test_every_suggestion_is_one_sentence(open_board: OpenBoard, board_names: list[str]) -> None:
    for name in board_names:
        for sentence in given_advice(open_board(name)).splitlines():
            assert sentence.endswith(".")
            assert ": " in sentence or "; " in sentence or "To " in sentence
