"""Counters, graphics cards, batteries, tegrastats and the user's word."""

from __future__ import annotations

import ctypes
import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune.device.board import identify_entry
from edgetune.device.catalogue import find_entry
from edgetune.device.power import describe_power, find_power
from edgetune.device.power.battery import find_batteries
from edgetune.device.power.find import Host
from edgetune.device.power.nvml import find_gpus
from edgetune.device.power.rapl import Zone, find_rapl
from edgetune.device.power.tegrastats import Tegrastats, parse_tegrastats
from edgetune.device.system import System
from edgetune.errors import InputError

RAPL = "sys/devices/virtual/powercap/intel-rapl"


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def set_counts(system, package, dram):
    (system.root / RAPL / "intel-rapl:0/energy_uj").write_text(f"{package}\n")
    (system.root / RAPL / "intel-rapl:0/intel-rapl:0:2/energy_uj").write_text(f"{dram}\n")


# -------------------------------------------------------------------------------------------------------------------- RAPL


@pytest.fixture
def counted(open_board):
    system = open_board("x86-rapl", files={"proc/x": ""})  # a copy, since the counters move
    system.clock = Clock()
    return system, find_rapl(system)


def test_packages_and_memory_count_but_not_what_overlaps(counted):
    _, rapl = counted
    assert [zone.name for zone in rapl.zones] == ["package-0", "dram"]


def test_a_counter_that_wraps_goes_on(counted):
    system, rapl = counted
    assert rapl.read_j() == 0.0
    system.clock.now += 1.0
    set_counts(system, 262143328850, 9001000000)
    assert rapl.read_j() == pytest.approx(0.328850 + 1.0)
    system.clock.now += 1.0
    set_counts(system, 9_999_999, 9001000000)  # one step to 0, then on
    assert rapl.read_j() == pytest.approx(0.328850 + 1.0 + 10.0)


def test_a_counter_that_was_reset_is_not_taken_for_a_wrap(counted):
    system, rapl = counted
    set_counts(system, 100_000_000_000, 9000000000)
    rapl.read_j()
    system.clock.now += 0.1
    set_counts(system, 5, 9000000000)
    assert rapl.read_j() is None
    assert "intel-rapl:0/energy_uj" in system.warnings[0]
    system.clock.now += 1.0
    set_counts(system, 7_000_005, 9000000000)
    assert rapl.read_j() == pytest.approx(7.0)
    assert len(system.warnings) == 1


def test_watts_are_a_mean_since_the_last_look_and_unknown_while_nothing_moves(counted):
    system, rapl = counted
    assert rapl.read().total_w is None
    system.clock.now += 2.0
    assert rapl.read().total_w is None
    set_counts(system, 262143000000 + 100_000, 9000000000 + 30_000_000)
    system.clock.now += 2.0
    reading = rapl.read()
    assert reading.total_w == pytest.approx(15.05)
    assert reading.rails == {"package-0": pytest.approx(0.05), "dram": pytest.approx(15.0)}


@given(st.lists(st.integers(0, 40_000_000), min_size=1, max_size=20), st.integers(0, 99_999_999))
def test_any_walk_of_a_small_counter_is_unwrapped(steps, start):
    zone, count, now = Zone("package-0", "energy_uj", range_uj=99_999_999), start, 0.0
    assert zone.advance(count, now)
    for step in steps:
        count, now = (count + step) % 100_000_000, now + 1.0
        assert zone.advance(count, now)
    assert zone.joules == pytest.approx(sum(steps) / 1e6)


def test_forbidden_counters_say_how_to_get_them(open_board):
    system = open_board("x86-rapl", errnos={"energy_uj": "EACCES"})
    board, entry = identify_entry(system)
    source = find_power(system, board, entry)
    power = describe_power(system, source, entry)
    assert source is None
    assert power.total_w is None
    assert len(system.warnings) == 1
    assert "sudo chmod a+r /sys/class/powercap" in system.warnings[0]


def test_a_still_counter_is_no_zero(open_board):
    system = open_board("x86-rapl")
    board, entry = identify_entry(system)
    power = describe_power(system, find_power(system, board, entry), entry)
    assert (power.source, power.total_w) == ("rapl", None)
    assert "did not move" in power.note


# -------------------------------------------------------------------------------------------------------------------- NVML


class FakeNvml:
    """The driver's library as a Jetson (no figure at all) or a card (milliwatts) answers."""

    def __init__(self, milliwatts):
        self.milliwatts = milliwatts

    def nvmlInit_v2(self):
        return 0

    def nvmlDeviceGetCount_v2(self, count):
        count._obj.value = len(self.milliwatts)
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index, handle):
        handle._obj.value = index.value + 1
        return 0

    def nvmlDeviceGetPowerUsage(self, handle, value):
        watts = self.milliwatts[handle.value - 1]
        if watts is None:
            return 3  # NVML_ERROR_NOT_SUPPORTED
        value._obj.value = watts
        return 0


def test_a_library_that_answers_no_watts_is_no_sensor(tmp_path):
    assert find_gpus(System(tmp_path), FakeNvml([None])) is None
    assert find_gpus(System(tmp_path), FakeNvml([])) is None
    assert find_gpus(System(tmp_path)) is None  # a foreign root never asks this machine's driver


def test_a_card_reads_out_watts_and_its_loss_is_unknown(tmp_path):
    library = FakeNvml([71_500, None, 20_000])
    gpus = find_gpus(System(tmp_path), library)
    assert gpus.read() == (91.5, {"gpu0": 71.5, "gpu2": 20.0}, None)
    library.milliwatts[2] = None
    assert gpus.read() == (None, {"gpu0": 71.5, "gpu2": None}, None)
    library.milliwatts[2] = ctypes.c_uint(-1).value
    assert gpus.read().total_w is None


def test_a_card_that_draws_nothing_is_no_sensor_and_no_zero(tmp_path):
    system = System(tmp_path)
    assert find_gpus(system, FakeNvml([0])) is None
    assert len(system.warnings) == 1
    assert "NVML gpu0" in system.warnings[0]
    library = FakeNvml([71_500])
    gpus = find_gpus(system, library)
    library.milliwatts[0] = 0
    assert gpus.read() == (None, {"gpu0": None}, None)


def test_counters_and_a_card_together_have_a_figure_in_the_profile(counted, tmp_path, monkeypatch):
    system, rapl = counted
    host = Host(rapl, find_gpus(System(tmp_path), FakeNvml([71_500])))
    set_counts(system, 262143328850, 9001000000)

    def sleep(seconds):  # between the two looks the counters move
        system.clock.now += seconds
        set_counts(system, 262143328850 + 1_000_000, 9001000000 + 500_000)

    monkeypatch.setattr("edgetune.device.power.find.time.sleep", sleep)
    power = describe_power(system, host, None)
    assert power.total_w == pytest.approx(71.5 + 1.5 / 0.05)
    assert (power.source, power.scope) == ("rapl+nvml", "cpu-package+gpu")


def test_a_stub_library_is_no_sensor(tmp_path):
    class Stub:
        def __getattr__(self, name):
            raise AttributeError(f"undefined symbol: {name}")

    system = System(tmp_path)
    assert find_gpus(system, Stub()) is None
    assert "nvmlInit_v2" in system.warnings[0]


# ----------------------------------------------------------------------------------------------------------------- battery


def test_a_discharging_battery_is_what_the_machine_draws(open_board):
    system = open_board("sbc-battery")
    board, entry = identify_entry(system)
    power = describe_power(system, find_power(system, board, entry), entry)
    assert power.total_w == pytest.approx(3.921 * 0.512)
    assert (power.source, power.scope, power.measured) == ("battery", "battery", True)
    assert list(power.rails) == ["axp20x-battery"]


def test_the_charge_left_is_known_while_it_discharges(open_board):
    folder = "sys/class/power_supply/axp20x-battery"
    assert find_batteries(open_board("sbc-battery")).charge_j() == pytest.approx(2.4 * 3.921 * 3600)
    named = open_board("sbc-battery", files={f"{folder}/energy_now": "5000000\n"})
    assert find_batteries(named).charge_j() == pytest.approx(5 * 3600)
    charging = open_board("sbc-battery", files={f"{folder}/status": "Charging\n"})
    assert find_batteries(charging).charge_j() is None
    silent = open_board("sbc-battery", files={f"{folder}/charge_now": "nonsense\n"})
    assert find_batteries(silent).charge_j() is None


@pytest.mark.parametrize("status", ["Charging", "Full", "Not charging", "Unknown", ""])
def test_any_other_state_leaves_the_draw_unknown(open_board, status):
    folder = "sys/class/power_supply/axp20x-battery"
    system = open_board("sbc-battery", files={f"{folder}/status": status})
    assert find_batteries(system).read().total_w is None


def test_a_negative_current_is_a_convention_not_a_direction(open_board):
    folder = "sys/class/power_supply/axp20x-battery"
    system = open_board("sbc-battery", files={f"{folder}/current_now": "-512000\n"})
    assert find_batteries(system).read().total_w == pytest.approx(3.921 * 0.512)
    system = open_board("sbc-battery", files={f"{folder}/power_now": "2500000\n"})
    assert find_batteries(system).read().total_w == pytest.approx(2.5)


@pytest.mark.parametrize(("name", "content"), [("current_now", "0\n"), ("power_now", "0\n")])
def test_a_battery_that_discharges_nothing_is_not_believed(open_board, name, content):
    path = f"sys/class/power_supply/axp20x-battery/{name}"
    system = open_board("sbc-battery", files={path: content})
    source = find_batteries(system)
    for _ in range(2):
        assert source.read() == (None, {"axp20x-battery": None}, None)
    assert len(system.warnings) == 1
    assert f"/{path}" in system.warnings[0]


@pytest.mark.parametrize("name", ["generic-sbc", "thor-t5000-jp7"])
def test_what_usb_negotiated_is_not_a_battery(open_board, name):
    assert find_batteries(open_board(name)) is None


# -------------------------------------------------------------------------------------------------------------- tegrastats

LINES = {
    "Nano R32": (
        "RAM 534/3964MB (lfb 98x4MB) SWAP 5/1982MB (cached 1MB) IRAM 0/252kB(lfb 252kB) CPU [16%@204,9%@204,0%@204,0%@204] "
        "EMC_FREQ 0%@204 GR3D_FREQ 0%@76 APE 25 PLL@34C CPU@36.5C PMIC@100C GPU@36C AO@39.5C thermal@36.25C "
        "POM_5V_IN 1022/1022 POM_5V_GPU 0/0 POM_5V_CPU 204/204",
        {"POM_5V_IN": 1.022, "POM_5V_GPU": 0.0, "POM_5V_CPU": 0.204},
    ),
    "TX2 R32": (
        "RAM 2344/7852MB (lfb 1154x4MB) SWAP 0/3926MB (cached 0MB) CPU [1%@345,off,off,1%@345,0%@345,2%@345] EMC_FREQ 4%@1600 "
        "GR3D_FREQ 0%@624 APE 150 PLL@37.5C MCPU@37.5C PMIC@100C Tboard@32C GPU@35C BCPU@37.5C thermal@36.5C Tdiode@34.25C "
        "VDD_SYS_GPU 152/152 VDD_SYS_SOC 687/687 VDD_4V0_WIFI 0/0 VDD_IN 3056/3056 VDD_SYS_CPU 152/152 VDD_SYS_DDR 883/883",
        {"VDD_SYS_GPU": 0.152, "VDD_SYS_SOC": 0.687, "VDD_4V0_WIFI": 0.0, "VDD_IN": 3.056, "VDD_SYS_CPU": 0.152,
         "VDD_SYS_DDR": 0.883},
    ),
    "AGX Xavier R32": (
        "RAM 700/15823MB (lfb 1x4MB) CPU [2%@1190,0%@1190,off,off,off,off] EMC_FREQ 0%@665 GR3D_FREQ 0%@318 APE 150 MTS fg 0% "
        "bg 0% AO@37.5C GPU@37.5C Tdiode@40C PMIC@100C AUX@36C CPU@37.5C thermal@36.9C Tboard@37C GPU 0/0 CPU 311/311 "
        "SOC 932/932 CV 0/0 VDDRQ 621/621 SYS5V 1482/1482",
        {"GPU": 0.0, "CPU": 0.311, "SOC": 0.932, "CV": 0.0, "VDDRQ": 0.621, "SYS5V": 1.482},
    ),
    "Xavier NX R35": (
        "07-09-2024 13:31:31 RAM 3168/6851MB (lfb 2x4MB) SWAP 161/3426MB (cached 0MB) CPU [23%@1397,1%@1397] EMC_FREQ 2%@204 "
        "GR3D_FREQ 0%@[114] VIC_FREQ 115 APE 150 AUX@45C CPU@46.5C thermal@45.6C AO@45C GPU@45.5C PMIC@50C "
        "VDD_IN 2763mW/2846mW VDD_CPU_GPU_CV 650mW/670mW VDD_SOC 650mW/711mW",
        {"VDD_IN": 2.763, "VDD_CPU_GPU_CV": 0.65, "VDD_SOC": 0.65},
    ),
    "AGX Orin R35": (
        "01-03-2023 16:07:54 RAM 2257/30536MB (lfb 5392x4MB) SWAP 0/15268MB (cached 0MB) CPU [0%@729,0%@729] EMC_FREQ 0%@204 "
        "GR3D_FREQ 0%@0 GR3D2_FREQ 0%@0 NVJPG1 729 VIC_FREQ 115 APE 233 CV0@-256C CPU@41.437C Tboard@29C SOC2@39.062C "
        "Tdiode@30.75C SOC0@39.031C CV1@-256C GPU@-256C tj@41.656C SOC1@38.937C CV2@-256C VDD_GPU_SOC 2390mW/2390mW "
        "VDD_CPU_CV 796mW/796mW VIN_SYS_5V0 3522mW/3522mW NC 0mW/0mW VDDQ_VDD2_1V8AO 301mW/301mW NC 0mW/0mW",
        {"VDD_GPU_SOC": 2.39, "VDD_CPU_CV": 0.796, "VIN_SYS_5V0": 3.522, "VDDQ_VDD2_1V8AO": 0.301},
    ),
    "AGX Orin R36": (
        "05-09-2026 18:42:06 RAM 18207/62841MB (lfb 466x4MB) SWAP 86/31420MB (cached 0MB) CPU [14%@2188,0%@2188] "
        "EMC_FREQ 3%@2133 GR3D_FREQ 0%@[0,0] NVENC 79%@166 NVDEC off NVJPG off NVJPG1 off VIC 36%@115 OFA off NVDLA0 off "
        "NVDLA1 off PVA0_FREQ off APE 174 cpu@52.562C soc2@48.437C soc0@49.093C tj@52.562C soc1@49.656C "
        "VDD_GPU_SOC 2412mW/2412mW VDD_CPU_CV 1607mW/1607mW VIN_SYS_5V0 4707mW/4707mW",
        {"VDD_GPU_SOC": 2.412, "VDD_CPU_CV": 1.607, "VIN_SYS_5V0": 4.707},
    ),
    "Orin Nano R36": (
        "10-08-2026 04:38:21 RAM 1343/7620MB (lfb 157x4MB) SWAP 165/3810MB (cached 3MB) CPU [0%@1497,0%@1497] EMC_FREQ 15%@204 "
        "GR3D_FREQ 0%@[305] NVDEC off NVJPG off VIC off OFA off APE 200 cpu@48.562C soc2@46.593C soc0@48.625C gpu@49.625C "
        "tj@49.312C soc1@47.937C VDD_IN 5251mW/8535mW VDD_CPU_GPU_CV 512mW/1944mW VDD_SOC 2720mW/3659mW",
        {"VDD_IN": 5.251, "VDD_CPU_GPU_CV": 0.512, "VDD_SOC": 2.72},
    ),
    "Orin R39": (
        "07-25-2026 09:08:28 RAM 20642/62817MB (lfb 1x2MB) CPU [23%@2201,1%@2201] EMC_FREQ 3%@3199 GR3D_FREQ 12%@[1300,1300] "
        "NVENC0 off cpu@52.968C/52.968C VDD_GPU_SOC 5139mW/5139mW/5139mW VDD_CPU_CV 3268mW/3268mW/3268mW "
        "VIN_SYS_5V0 5500mW/5500mW/5500mW",
        {"VDD_GPU_SOC": 5.139, "VDD_CPU_CV": 3.268, "VIN_SYS_5V0": 5.5},
    ),
    "Thor R38": (
        "04-21-2026 15:50:52 RAM 105265/125772MB (lfb 34x4MB) CPU [0%@972,0%@972] EMC_FREQ 0%@2750 GR3D_FREQ @[314,314,314] "
        "NVENC0_FREQ @314 VIC off OFA_FREQ @315 PVA0_FREQ off APE 300 cpu@37.343C tj@38.875C soc012@37.468C gpu@38.875C "
        "soc345@37.406C VDD_GPU 1962mW/1962mW VDD_CPU_SOC_MSS 5887mW/5887mW VIN_SYS_5V0 5635mW/5635mW VIN 19780mW/19780mW",
        {"VDD_GPU": 1.962, "VDD_CPU_SOC_MSS": 5.887, "VIN_SYS_5V0": 5.635, "VIN": 19.78},
    ),
    "Thor R39": (
        "RAM 1/125772MB (lfb 1x512kB) CPU [0%,5%,off]@2601 GR3D_FREQ 87%@[1574,1574,1574] VDD_GPU -392mW/8660mW/37939mW "
        "VIN 124486mW/36487mW/124486mW",
        {"VDD_GPU": -0.392, "VIN": 124.486},
    ),
    "an ordinary user": ("RAM 534/3964MB (lfb 98x4MB) GR3D_FREQ 0% VDD_IN 3056/3056", {"VDD_IN": 3.056}),
    "a long average": ("NC 5mW/5mW VDD_IN 5251mW/85359999mW VDD_IN 1mW/1mW", {"VDD_IN": 5.251}),
}  # fmt: skip


@pytest.mark.parametrize("line", LINES)
def test_every_known_line(line):
    text, rails = LINES[line]
    assert parse_tegrastats(text) == rails


@given(st.one_of(st.text(max_size=300), st.text("RAMVIN_CPUGmW0123456789/@%[](), -.", max_size=300)))
def test_any_line_is_parsed_without_a_crash(line):
    assert all(isinstance(watts, float) for watts in parse_tegrastats(line).values())


def test_it_is_the_last_resort_of_a_jetson_without_readable_files(open_board):
    system = open_board(
        "orin-nano-super-jp6", files={"sys/class/hwmon": None, "sys/bus": None, "sys/devices/platform/bus@0": None}
    )
    board, entry = identify_entry(system)
    power = describe_power(system, find_power(system, board, entry), entry)
    assert power.source == "tegrastats"
    assert power.total_w == pytest.approx(5.251)
    assert power.scope == "module"


def test_a_running_tool_is_read_line_by_line_and_ended(tmp_path, monkeypatch):
    tool = tmp_path / "tegrastats"
    tool.write_text(f"#!/bin/sh\nwhile :; do echo '{LINES['Orin Nano R36'][0]}'; sleep 0.05; done\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    source = Tegrastats(System("/"), find_entry("orin-nano"))
    process = source._process
    assert source.read().total_w == pytest.approx(5.251)
    source.close()
    assert process.poll() is not None
    source.system.clock = lambda: 1e12
    assert source.read().total_w is None  # its last line is old


# ---------------------------------------------------------------------------------------------------------- the user's word


def test_a_users_constant_is_never_called_measured(open_board):
    system = open_board("generic-sbc")
    board, entry = identify_entry(system)
    power = describe_power(system, find_power(system, board, entry, 6.5), entry)
    assert (power.source, power.total_w, power.measured) == ("user", 6.5, False)
    assert "--power" in power.model
    assert system.warnings == []


def test_a_users_constant_wins_over_a_sensor_and_says_so(open_board):
    system = open_board("orin-nano-super-jp6")
    board, entry = identify_entry(system)
    assert find_power(system, board, entry, 7.0).read().total_w == 7.0
    assert "ina3221" in system.warnings[0]


def test_a_users_constant_needs_no_sensor_and_is_told_of_none(open_board):
    system = open_board("rpi500")
    board, entry = identify_entry(system)
    assert find_power(system, board, entry, 7.0).read().total_w == 7.0
    assert system.warnings == []


def test_an_unlabelled_chip_is_listed_until_the_user_says_what_it_measures(open_board):
    system = open_board("sbc-ina226")
    board, entry = identify_entry(system)
    source = find_power(system, board, entry)
    power = describe_power(system, source, entry)
    assert power.total_w is None
    assert "ina226" in power.note
    assert "may be a battery" in power.note
    chosen = describe_power(system, find_power(system, board, entry, meter="ina238"), entry)
    assert chosen.total_w == pytest.approx(19.5552)
    assert chosen.scope == "wall"
    with pytest.raises(InputError, match="ina226"):
        find_power(system, board, entry, meter="ina999")


def test_a_chip_whose_current_runs_backwards_is_no_load(open_board):
    system = open_board("sbc-ina226")
    board, entry = identify_entry(system)
    power = describe_power(system, find_power(system, board, entry, meter="ina226"), entry)
    assert power.total_w is None  # 176 mW into the battery, which the chip's power file shows without a sign
    assert "power1_input" in system.warnings[0]
    assert "negative" in system.warnings[0]


@pytest.mark.parametrize("name", ["nano-2gb-jp4", "empty", "x86-vm", "cm4", "generic-sbc"])
def test_no_sensor_is_none_with_a_reason(open_board, name):
    system = open_board(name)
    board, entry = identify_entry(system)
    power = describe_power(system, find_power(system, board, entry), entry)
    assert power.source is None
    assert power.total_w is None
    assert power.rails == {}
    assert "--power" in power.note


def test_every_board_is_described_whatever_can_not_be_read(open_board, board_names):
    for name in board_names:
        for error in ("EACCES", "EIO", "ENODATA"):
            system = open_board(name, errnos={"/sys": error, "/proc": error})
            board, entry = identify_entry(system)
            power = describe_power(system, find_power(system, board, entry), entry)
            assert power.total_w is None or power.source in ("tegrastats", "pmic")
