"""Power modes and clocks: the command, the state file in its place, every board's fixture, and nonsense."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune.device.modes import (
    PowerMode,
    parse_cpu_list,
    parse_nvpmodel,
    parse_nvpmodel_conf,
    parse_nvpmodel_status,
    read_modes,
)
from edgetune.device.system import System
from tests.device.conftest import OpenBoard

COMMAND = "cmd/nvpmodel--q.txt"
STATUS = "var/lib/nvpmodel/status"
MODES = {
    "nano-jp4": "MAXN",
    "tx2-jp4": "MAXP_CORE_ARM",
    "xavier-nx-jp4": "MODE_15W_6CORE",
    "xavier-nx-jp5": "MODE_20W_6CORE",
    "agx-xavier-jp4": "MODE_15W",
    "orin-nano-super-jp6": "25W",
    "orin-nx-jp6": "25W",
    "agx-orin-jp5": "MODE_30W",
    "agx-orin-jp6": "MAXN",
    "thor-t5000-jp7": "120W",
    "rpi5": None,
    "x86-rapl": None,
    "empty": None,
}


@pytest.mark.parametrize("seed", [None, 4])
@pytest.mark.parametrize("name", MODES)
def test_the_mode_in_force(open_board: OpenBoard, name: str, seed: int | None) -> None:
    assert read_modes(open_board(name, seed=seed)).current == MODES[name]


@pytest.mark.parametrize("name", [name for name, mode in MODES.items() if mode])
def test_without_the_command_state_and_configuration_tell_the_same(open_board: OpenBoard, name: str) -> None:
    assert read_modes(open_board(name, files={COMMAND: None})).current == MODES[name]


def test_without_state_and_command_the_mode_is_unknown(open_board: OpenBoard) -> None:
    modes = read_modes(open_board("orin-nano-super-jp6", files={COMMAND: None, STATUS: None}))
    assert modes.current is None
    assert modes.available == ["15W", "25W", "MAXN_SUPER", "7W"]


def test_an_absolute_link_stays_below_another_root(open_board: OpenBoard) -> None:
    system = open_board("orin-nano-super-jp6", files={COMMAND: None})
    link = system.path("/etc/nvpmodel.conf")
    link.unlink()
    link.symlink_to("/etc/nvpmodel/nvpmodel_p3767_0003_super.conf")
    assert read_modes(system).current == "25W"


def test_clocks_of_an_orin_nano(open_board: OpenBoard) -> None:
    modes = read_modes(open_board("orin-nano-super-jp6", seed=7))
    assert modes.cpu_hz == [729_600_000] * 6
    assert modes.cpu_max_hz == [1_344_000_000] * 6
    assert (modes.gpu_hz, modes.gpu_max_hz) == (305_250_000, 918_000_000)
    assert (modes.governor, modes.clocks_locked) == ("schedutil", False)
    assert modes.fan == "pwm 120/255"


def test_pinned_clocks_are_seen(open_board: OpenBoard) -> None:
    files = {"sys/class/devfreq/17000000.gpu/min_freq": "918000000"}
    assert read_modes(open_board("orin-nano-super-jp6", files=files)).clocks_locked is True


@pytest.mark.parametrize(
    ("name", "gpu_max_hz"),
    [
        ("nano-jp4", 921_600_000),
        ("tx2-jp4", 1_300_500_000),
        ("xavier-nx-jp5", 1_109_250_000),
        ("agx-orin-jp5", 930_750_000),
        ("thor-t5000-jp7", 1_575_000_000),  # the graphics clusters, not the other node
        ("rpi5", None),
    ],
)
def test_gpus_under_every_name(open_board: OpenBoard, name: str, gpu_max_hz: int | None) -> None:
    assert read_modes(open_board(name)).gpu_max_hz == gpu_max_hz


def test_fans(open_board: OpenBoard) -> None:
    assert read_modes(open_board("rpi5", seed=5)).fan == "pwm 75/255, 2811 rpm"
    assert read_modes(open_board("nano-jp4")).fan == "quiet"
    assert read_modes(open_board("nano-jp4", files={COMMAND: None, STATUS: None})).fan == "pwm 80/255"
    assert read_modes(open_board("empty")).fan is None


def test_processors_that_are_off_have_no_clock(open_board: OpenBoard) -> None:
    modes = read_modes(open_board("orin-nano-super-jp6", files={"sys/devices/system/cpu/online": "0-3"}))
    assert len(modes.cpu_hz) == 4


def test_absurd_clocks_are_unknown_and_named(open_board: OpenBoard) -> None:
    system = open_board("x86-rapl", files={"sys/devices/system/cpu/cpu3/cpufreq/scaling_cur_freq": "99999999999999"})
    assert len(read_modes(system).cpu_hz) == 7
    assert any("cpu3/cpufreq/scaling_cur_freq" in sentence for sentence in system.warnings)


def test_this_machine() -> None:
    modes = read_modes(System())
    assert all(clock > 0 for clock in modes.cpu_hz)


@pytest.mark.parametrize(
    ("output", "mode"),
    [
        ("NV Fan Mode:quiet\nNV Power Mode: MAXN\n0\n", PowerMode(0, "MAXN", "quiet")),
        ("NV Power Mode: 25W\n1\n", PowerMode(1, "25W")),
        (
            "NVPM WARN: fan mode is not set!\nNV Power Mode: MODE_15W_6CORE\n2\n"
            "NVPM ERROR: Error opening /sys/kernel/nvpmodel_emc_cap/emc_iso_cap: 13\n",
            PowerMode(2, "MODE_15W_6CORE"),
        ),
        ("NVPM VERB: Current mode: NV Power Mode: MODE_15W_6CORE\n2\n", PowerMode(2, "MODE_15W_6CORE")),
        ("NVPM WARN: power mode is not set!\n", None),
        ("NV Power Mode: MAXN\nnot a number\n", None),
        ("", None),
    ],
)
def test_answers_of_the_command(output: str, mode: PowerMode | None) -> None:
    assert parse_nvpmodel(output) == mode


def test_configuration() -> None:
    text = "# a\n< POWER_MODEL ID=0 NAME=15W >\nX 1\n< POWER_MODEL NAME=7W ID=3 >\n#< POWER_MODEL ID=9 NAME=no >\n"
    assert parse_nvpmodel_conf(text) == {0: "15W", 3: "7W"}
    assert parse_nvpmodel_conf("< POWER_MODEL ID=x NAME=y >\n< POWER_MODEL >\n") == {}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("pmode:0002 fmode:fan_mode_quiet", (2, "quiet")),
        ("pmode:0000", (0, None)),
        ("fmode:cool", (None, "cool")),
        ("pmode:xx", (None, None)),
    ],
)
def test_state_file(text: str, found: tuple[int | None, str | None]) -> None:
    assert parse_nvpmodel_status(text) == found


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("0-3", [0, 1, 2, 3]),
        ("0,2-3\n", [0, 2, 3]),
        ("5", [5]),
        ("3-1", None),
        ("", None),
        ("0-99999", None),
        ("a", None),
    ],
)
def test_lists_of_processors(text: str, numbers: list[int] | None) -> None:
    assert parse_cpu_list(text) == numbers


PIECES = st.sampled_from(
    ["NV Power Mode: ", "< POWER_MODEL ", "ID=", "NAME=", " >", "\n", "0", "pmode:", "fmode:", "-", ","]
)
MESS = st.lists(st.one_of(PIECES, st.text(max_size=5)), max_size=25).map("".join)


@given(MESS)
def test_parsers_never_fail(text: str) -> None:
    mode = parse_nvpmodel(text)
    assert mode is None or mode.name
    assert all(name.isprintable() for name in parse_nvpmodel_conf(text).values())
    parse_nvpmodel_status(text)
    numbers = parse_cpu_list(text)
    assert numbers is None or numbers == sorted(set(numbers))


@given(st.sets(st.integers(0, 4095), min_size=1, max_size=20))
def test_lists_of_processors_are_read_back(numbers: set[int]) -> None:
    assert parse_cpu_list(",".join(map(str, sorted(numbers)))) == sorted(numbers)
