"""What edgetune suggests: each sentence where it belongs, and nowhere else."""

from __future__ import annotations

import pytest

from edgetune.device.board import identify_entry
from edgetune.device.memory import read_memory
from edgetune.device.modes import read_modes
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
    ],
)
def test_not_said_where_it_would_be_wrong(open_board: OpenBoard, name: str, phrase: str) -> None:
    assert phrase not in given_advice(open_board(name))


def test_nothing_is_suggested_where_nothing_is_known(open_board: OpenBoard) -> None:
    assert given_advice(open_board("empty")) == ""


def test_every_suggestion_is_one_sentence(open_board: OpenBoard, board_names: list[str]) -> None:
    for name in board_names:
        for sentence in given_advice(open_board(name)).splitlines():
            assert sentence.endswith(".")
            assert ": " in sentence or "; " in sentence or "To " in sentence
