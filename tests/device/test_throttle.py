"""Throttle counters before and after, and what they say together."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune.device.system import System
from edgetune.device.throttle import (
    delta,
    parse_get_throttled,
    parse_temperature,
    read_throttle,
    slowing,
    throttled,
)
from tests.device.conftest import OpenBoard

GET = "cmd/vcgencmd-get_throttled.txt"
SYSFS = "sys/devices/platform/soc/soc:firmware/get_throttled"


@pytest.mark.parametrize("seed", [None, 6])
def test_an_orin_counts_over_current_and_gates_zones(open_board: OpenBoard, seed: int | None) -> None:
    system = open_board("orin-nano-super-jp6", seed=seed)
    found = read_throttle(system)
    assert found["oc1_under_voltage_count"] == 0
    assert found["oc3_instantaneous_over_current_count"] == 17
    assert found["cpu_throttle_alert_now"] == 0
    assert found["temp_tj_thermal_mc"] == 49312
    assert found["temp_gpu_thermal_mc"] is None  # EAGAIN
    assert found["temp_cv0_thermal_mc"] is None  # -256 degrees
    assert system.warnings == []


def test_a_constant_is_no_temperature(open_board: OpenBoard) -> None:
    found = read_throttle(open_board("nano-jp4"))
    assert not [key for key in found if "pmic" in key]
    assert found["temp_ao_therm_mc"] == 39500


@pytest.mark.parametrize(
    ("name", "bits"),
    [("rpi4", 0xE0000), ("rpi-zero2w", 0xE0000), ("rpi5", 0), ("cm4", 0x50005), ("x86-rapl", None), ("empty", None)],
)
def test_the_firmware_of_a_raspberry_pi(open_board: OpenBoard, name: str, bits: int | None) -> None:
    assert read_throttle(open_board(name)).get("get_throttled") == bits
    without_command = open_board(name, files={GET: None} if bits is not None else {})
    assert read_throttle(without_command).get("get_throttled") == bits


def test_bits_have_names(open_board: OpenBoard) -> None:
    found = read_throttle(open_board("cm4"))
    on = {key for key, value in found.items() if value and key.endswith(("_now", "_since_boot"))}
    assert on == {"under_voltage_now", "under_voltage_since_boot", "throttled_now", "throttled_since_boot"}


def test_x86_counts_events_of_its_cores_and_the_package_once(open_board: OpenBoard) -> None:
    found = read_throttle(open_board("x86-rapl"))
    assert (found["core_throttle_count"], found["package_throttle_count"]) == (6, 5)


def test_a_throttle_in_force_is_seen(open_board: OpenBoard) -> None:
    files = {"sys/class/thermal/cooling_device1/cur_state": "1"}
    found = read_throttle(open_board("orin-nx-jp6", files=files))
    assert found["gpu_throttle_alert_now"] == 1
    assert throttled(delta(found, found)) is True


def test_a_machine_without_counters_has_none(open_board: OpenBoard) -> None:
    assert read_throttle(open_board("empty")) == {}
    assert throttled(delta({}, {})) is None


@pytest.mark.parametrize("text", ["hot", "999999999", "", "-99000"])
def test_nonsense_in_a_zone_is_named_once(open_board: OpenBoard, text: str) -> None:
    system = open_board("rpi5", files={"sys/class/thermal/thermal_zone0/temp": text})
    assert read_throttle(system)["temp_cpu_thermal_mc"] is None
    read_throttle(system)
    assert len([sentence for sentence in system.warnings if "thermal_zone0/temp" in sentence]) == 1


@pytest.mark.parametrize(("errno", "said"), [("EIO", True), ("EACCES", True), ("EAGAIN", False), ("ENODATA", False)])
def test_a_broken_counter_is_unknown_and_a_sleeping_one_no_fault(open_board: OpenBoard, errno: str, said: bool) -> None:
    system = open_board("orin-nx-jp6", errnos={"oc2_event_cnt": errno})
    found = read_throttle(system)
    assert found["oc2_average_over_current_count"] is None
    assert found["oc3_instantaneous_over_current_count"] == 0
    assert any("oc2_event_cnt" in sentence for sentence in system.warnings) is said


def test_a_firmware_file_of_nonsense_is_unknown_and_named(open_board: OpenBoard) -> None:
    system = open_board("rpi5", files={GET: "Can't open device file: /dev/vcio\n", SYSFS: "rubbish"})
    assert read_throttle(system)["get_throttled"] is None
    assert any("get_throttled" in sentence for sentence in system.warnings)


def test_events_in_between_are_differences() -> None:
    before: dict[str, int | None] = {"oc3_x_count": 17, "temp_tj_mc": 40000, "a_now": 0, "swap_in_pages_count": 5}
    after: dict[str, int | None] = {"oc3_x_count": 20, "temp_tj_mc": 52000, "a_now": 1, "swap_in_pages_count": 9}
    assert delta(before, after) == {"oc3_x_count": 3, "temp_tj_mc": 12000, "a_now": 1, "swap_in_pages_count": 4}


def test_a_bit_that_was_set_before_says_nothing_about_the_run() -> None:
    assert delta({"throttled_since_boot": 0}, {"throttled_since_boot": 1}) == {"throttled_since_boot": 1}
    assert delta({"throttled_since_boot": 0}, {"throttled_since_boot": 0}) == {"throttled_since_boot": 0}
    assert delta({"throttled_since_boot": 1}, {"throttled_since_boot": 1}) == {"throttled_since_boot": None}
    active: dict[str, int | None] = {"throttled_since_boot": 1, "throttled_now": 1}
    assert delta({"throttled_since_boot": 1, "throttled_now": 0}, active) == {
        "throttled_since_boot": 1,
        "throttled_now": 1,
    }


def test_what_slowed_a_machine_is_named_with_its_heat() -> None:
    before: dict[str, int | None] = {"oc3_x_count": 17, "temp_tj_mc": 40000, "temp_gpu_mc": None, "a_now": 0}
    after = before | {"oc3_x_count": 20, "temp_tj_mc": 81600}
    assert slowing(before, after) == "oc3_x_count; the hottest zone has 82 °C now"
    assert slowing(before, before) is None
    assert slowing({"a_now": 0}, {"a_now": 1}) == "a_now"
    assert slowing({}, {}) is None


def test_new_bits_of_the_firmware() -> None:
    assert delta({"get_throttled": 0x50000}, {"get_throttled": 0x50005}) == {"get_throttled": 0x5}
    assert delta({"get_throttled": 0x10000}, {"get_throttled": 0}) == {"get_throttled": 0}


def test_a_counter_that_fell_or_vanished_is_unknown() -> None:
    assert delta({"x_count": 9}, {"x_count": 2}) == {"x_count": None}
    assert delta({"x_count": 9}, {}) == {"x_count": None}
    assert delta({}, {"x_count": 9}) == {"x_count": None}


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"oc3_count": 3}, True),
        ({"oc3_count": 0, "cpu_throttle_alert_now": 0}, False),
        ({"oc3_count": 0, "throttled_since_boot": None}, None),
        ({"oc3_count": 1, "throttled_since_boot": None}, True),
        ({"swap_in_pages_count": 900, "temp_tj_mc": 30000}, None),
        ({"swap_in_pages_count": 900, "oc1_count": 0}, False),
    ],
)
def test_whether_a_run_was_throttled(changes: dict[str, int | None], verdict: bool | None) -> None:
    assert throttled(changes) is verdict


def test_this_machine() -> None:
    found = read_throttle(System())
    assert all(value is None or isinstance(value, int) for value in found.values())


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        ("throttled=0x50005\n", 0x50005),
        ("e0000", 0xE0000),
        ("throttled=0x0", 0),
        ("0X10", 16),
        ("", None),
        ("throttled=", None),
        ("throttled=0xZZ", None),
        ("123456789", None),
    ],
)
def test_firmware_bits(text: str, bits: int | None) -> None:
    assert parse_get_throttled(text) == bits


@pytest.mark.parametrize(("text", "value"), [("47715", 47715), ("-256000", None), ("-5000", -5000), ("4e4", None)])
def test_temperatures(text: str, value: int | None) -> None:
    assert parse_temperature(text) == value


READINGS = st.dictionaries(
    st.sampled_from(["a_count", "b_now", "c_since_boot", "c_now", "temp_x_mc", "get_throttled"]),
    st.one_of(st.none(), st.integers(0, 1 << 20)),
)


@given(READINGS, READINGS)
def test_deltas_never_fail_and_never_make_something_of_nothing(
    before: dict[str, int | None], after: dict[str, int | None]
) -> None:
    changes = delta(before, after)
    assert set(changes) == set(before) | set(after)
    for key, value in changes.items():
        if before.get(key) is None and after.get(key) is None:
            assert value is None
    assert throttled(changes) in (True, False, None)


@given(st.text(max_size=30))
def test_parsers_never_fail(text: str) -> None:
    bits = parse_get_throttled(text)
    assert bits is None or 0 <= bits < 1 << 32
    value = parse_temperature(text)
    assert value is None or -60_000 <= value <= 200_000
