"""Rail monitors: totals of every Jetson fixture, and what a broken sensor does to them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetune.device.board import identify_entry
from edgetune.device.catalogue import find_entry
from edgetune.device.power import describe_power, find_power
from edgetune.device.power.ina3221 import RailMonitors, find_rails
from edgetune.device.system import System

# watts are the register-true volts times amperes behind published tegrastats lines
TOTALS = {
    "nano-jp4": (1.022, "board-input", {"POM_5V_IN": 1.022, "POM_5V_GPU": 0.0, "POM_5V_CPU": 0.204}),
    "tx2-jp4": (3.056, "module", {"VDD_IN": 3.056, "VDD_SYS_DDR": 0.883}),
    "xavier-nx-jp4": (4.067, "module", {"VDD_IN": 4.067, "VDD_CPU_GPU_CV": 0.738, "VDD_SOC": 1.353}),
    "xavier-nx-jp5": (2.763, "module", {"VDD_IN": 2.763, "VDD_CPU_GPU_CV": 0.650, "VDD_SOC": 0.650}),
    "agx-xavier-jp4": (3.346, "module", {"GPU": 0.0, "SYS5V": 1.482}),
    "agx-xavier-jp5": (3.346, "module", {"GPU": 0.0, "SYS5V": 1.482}),
    "orin-nano-super-jp6": (5.251, "module", {"VDD_IN": 5.251, "VDD_CPU_GPU_CV": 0.512, "VDD_SOC": 2.720}),
    "agx-orin-jp5": (6.708, "module", {"VDD_GPU_SOC": 2.390, "VDD_CPU_CV": 0.796, "VDDQ_VDD2_1V8AO": 0.301}),
    "agx-orin-jp6": (8.726, "module", {"VDD_GPU_SOC": 2.412, "VDD_CPU_CV": 1.607, "VIN_SYS_5V0": 4.707}),
    "thor-t5000-jp7": (19.780, "board-input", {"VIN": 19.780, "VDD_GPU": 1.962}),
}


def power_of(system):
    board, entry = identify_entry(system)
    source = find_power(system, board, entry)
    return describe_power(system, source, entry)


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
@pytest.mark.parametrize("name", TOTALS)
def test_total_rails_and_scope_whatever_the_numbers(open_board, name, seed):
    total_w, scope, rails = TOTALS[name]
    power = power_of(open_board(name, seed=seed))
    assert power.measured is True
    assert power.total_w == pytest.approx(total_w, abs=0.001 * len(power.rails))  # published figures are cut to mW
    assert power.scope == scope
    for rail, watts in rails.items():
        assert power.rails[rail] == pytest.approx(watts, abs=0.001)


@pytest.mark.parametrize("seed", [None, 5])
def test_a_disabled_channel_is_no_rail_and_no_warning(open_board, seed):
    system = open_board("agx-orin-jp5", seed=seed)
    assert set(power_of(system).rails) == {"VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"}
    assert system.warnings == []


def test_the_sum_of_shunt_voltages_is_no_rail(open_board):
    assert set(power_of(open_board("orin-nano-super-jp6")).rails) == {"VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"}


def test_the_averaging_window_is_what_the_driver_says(open_board):
    assert power_of(open_board("orin-nano-super-jp6")).interval_s == 3.379
    assert power_of(open_board("nano-jp4")).interval_s is None


def test_rails_inside_the_total_are_listed_not_added(open_board):
    note = power_of(open_board("agx-orin-jp5")).note
    assert "total = VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0" in note
    assert "not part of the total: VDDQ_VDD2_1V8AO" in note


@pytest.mark.parametrize("error", ["ENODATA", "EAGAIN", "EIO", "EACCES", "ENOENT"])
def test_an_unreadable_total_rail_makes_the_total_unknown_not_smaller(open_board, error):
    system = open_board("agx-orin-jp5", errnos={"hwmon3/curr2_input": error}, files={"cmd/tegrastats.txt": None})
    power = power_of(system)
    assert power.total_w is None
    assert power.rails["VDD_CPU_CV"] is None
    assert power.rails["VDD_GPU_SOC"] == pytest.approx(2.3904)
    named = [warning for warning in system.warnings if "curr2_input" in warning]
    assert len(named) == (1 if error in ("EIO", "EACCES") else 0)


@pytest.mark.parametrize(
    "content", [b"", b"garbage\n", b"12 34\n", b"\xff\xfe\x00", b"1" * 400, b"0x10\n", b"nan\n", b"1e9\n"]
)
def test_garbage_is_unknown_with_one_warning_that_names_the_file(open_board, content):
    system = open_board(
        "orin-nano-super-jp6",
        files={
            "sys/devices/platform/bus@0/c240000.i2c/i2c-1/1-0040/hwmon/hwmon4/in1_input": content,
            "cmd/tegrastats.txt": None,
        },
    )
    board, entry = identify_entry(system)
    source = find_power(system, board, entry)
    for _ in range(3):
        assert source.read().total_w is None
    assert [warning.split()[0] for warning in system.warnings] == ["/sys/class/hwmon/hwmon4/in1_input"]


@pytest.mark.parametrize(("current", "word"), [("-80", "negative"), ("90000000", "not believable")])
def test_negative_and_absurd_readings_are_unknown_with_one_warning(open_board, current, word):
    chip = "sys/devices/platform/bus@0/c240000.i2c/i2c-1/1-0040/hwmon/hwmon4"
    system = open_board("orin-nano-super-jp6", files={f"{chip}/curr1_input": current, "cmd/tegrastats.txt": None})
    board, entry = identify_entry(system)
    source = find_power(system, board, entry)
    for _ in range(3):
        assert source.read().total_w is None
    assert len(system.warnings) == 1
    assert "/sys/class/hwmon/hwmon4/curr1_input" in system.warnings[0]
    assert word in system.warnings[0]


@pytest.mark.parametrize("error", ["EACCES", "EIO", "ENODATA", None])
def test_tegrastats_is_asked_where_the_monitors_can_not_be_read(open_board, error):
    chip = "sys/devices/platform/bus@0/c240000.i2c/i2c-1/1-0040/hwmon/hwmon4"
    if error is None:
        system = open_board("orin-nano-super-jp6", files={f"{chip}/in1_input": "garbage\n"})
    else:
        system = open_board("orin-nano-super-jp6", errnos={"in1_input": error})
    power = power_of(system)
    assert (power.source, power.scope, power.measured) == ("tegrastats", "module", True)
    assert power.total_w == pytest.approx(5.251)
    named = [warning for warning in system.warnings if "/in1_input" in warning]
    assert len(named) == (0 if error == "ENODATA" else 1)


def test_monitors_that_can_not_be_read_now_stay_the_fallback(open_board):
    system = open_board("orin-nano-super-jp6", errnos={"in1_input": "EACCES"}, files={"cmd/tegrastats.txt": None})
    board, entry = identify_entry(system)
    source = find_power(system, board, entry)
    assert source.name == "ina3221"
    assert source.read().total_w is None
    system.errnos.clear()
    assert source.read().total_w == pytest.approx(5.251904)


def test_a_total_of_nothing_is_not_believed(open_board):
    chip = "sys/devices/platform/bus@0/c240000.i2c/i2c-1/1-0040/hwmon/hwmon4"
    system = open_board("orin-nano-super-jp6", files={f"{chip}/curr1_input": "0\n", "cmd/tegrastats.txt": None})
    board, entry = identify_entry(system)
    source = find_power(system, board, entry)
    for _ in range(3):
        assert source.read().total_w is None
    (warning,) = system.warnings
    assert warning.startswith("/sys/class/hwmon/hwmon4/curr1_input says")
    assert "0 W" in warning
    zero = open_board("orin-nano-super-jp6", files={f"{chip}/curr2_input": "0\n"})
    power = power_of(zero)
    assert power.rails["VDD_CPU_GPU_CV"] == 0.0  # a rail may be off
    assert power.total_w == pytest.approx(5.251904)
    assert zero.warnings == []


def test_thors_gated_gpu_rail_reads_below_zero_and_leaves_the_total_alone(open_board):
    power = power_of(open_board("thor-t4000-jp7"))
    assert power.rails["VDD_GPU"] is None
    assert power.total_w == power.rails["VIN"] == 15.042
    assert power.source == "ina238"


def test_usb_negotiation_is_not_power(open_board):
    assert not any("ucsi" in rail for rail in power_of(open_board("thor-t5000-jp7")).rails)


def test_a_power_file_of_a_clone_is_not_believed(open_board):
    chip = "sys/devices/platform/bus@0/c240000.i2c/i2c-1/1-0040/hwmon/hwmon4"
    system = open_board("orin-nano-super-jp6", files={f"{chip}/power1_input": "5251\n"})  # milliwatts, in a µW file
    assert power_of(system).total_w == pytest.approx(5.251904)


def test_jetpack_4_without_its_power_file_uses_volts_and_amperes(open_board):
    chip = "sys/devices/7000c400.i2c/i2c-6/6-0040/iio:device0"
    assert power_of(open_board("nano-jp4", files={f"{chip}/in_power0_input": None})).total_w == pytest.approx(1.0224)


@pytest.mark.parametrize("kept", ["class", "driver"])
def test_a_tree_without_its_links_counts_every_rail_once(tmp_path, kept):
    """A copied tree may have the chip under the class, under the driver, or as two real folders."""
    for number, parent in enumerate(("sys/class/hwmon/hwmon7", "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon2")):
        if kept == "driver" and number == 0:
            continue
        folder = tmp_path / parent
        folder.mkdir(parents=True)
        for name, content in {
            "name": "ina3221",
            "in1_label": "VDD_IN",
            "in1_input": "5000",
            "curr1_input": "1000",
        }.items():
            (folder / name).write_text(content + "\n")
    system = System(tmp_path)
    source = RailMonitors(system, find_rails(system), find_entry("orin-nano"))
    assert source.read() == (5.0, {"VDD_IN": 5.0}, None)
    assert system.warnings == []


def test_two_chips_that_name_one_rail_make_no_total(tmp_path):
    for number in (1, 2):
        folder = tmp_path / f"sys/class/hwmon/hwmon{number}"
        folder.mkdir(parents=True)
        for name, content in {
            "name": "ina3221", "in1_label": "VDD_IN", "in1_input": "5000", "curr1_input": "1000", "in2_label": f"B{number}",
        }.items():  # fmt: skip
            (folder / name).write_text(content + "\n")
    system = System(tmp_path)
    source = RailMonitors(system, find_rails(system), find_entry("orin-nano"))
    assert source.read().total_w is None
    assert "second rail VDD_IN" in system.warnings[0]


LABELS = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="/"), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(
    extra=st.dictionaries(LABELS, st.integers(0, 30000), max_size=5),
    numbers=st.permutations(range(9)),
)
def test_rails_nobody_knows_are_never_added(tmp_path_factory, extra, numbers):
    root = tmp_path_factory.mktemp("board")
    rails = [("VDD_IN", 1064), *((name, current) for name, current in extra.items() if name != "VDD_IN")]
    for index, (name, current) in enumerate(rails):
        folder = root / f"sys/class/hwmon/hwmon{numbers[index % 3]}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "name").write_text("ina3221\n")
        channel = index // 3 + 1
        (folder / f"in{channel}_label").write_text(name + "\n")
        (folder / f"in{channel}_input").write_text("4936\n")
        (folder / f"curr{channel}_input").write_text(f"{current}\n")
    system = System(root)
    source = RailMonitors(system, find_rails(system), find_entry("orin-nano"))
    assert source.read().total_w == pytest.approx(5.251904)
    empty = RailMonitors(system, find_rails(system), None).read()
    assert empty.total_w is None
    assert math.isclose(empty.rails["VDD_IN"] or 0.0, 5.251904)
