"""The Raspberry Pi's power chip, and the published models of the boards that have none."""

from __future__ import annotations

import errno
import re
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune.device.board import identify_entry
from edgetune.device.catalogue import find_entry
from edgetune.device.power import describe_power, find_power
from edgetune.device.power.constant import LinearModel, parse_cpu_ticks
from edgetune.device.power.pmic import Pmic, mailbox_answer, mailbox_message, parse_pmic, request_code
from edgetune.device.system import System

HALF_BUSY = "cpu  400 0 100 450 50 0 0 0 0 0\ncpu0 400 0 100 450 50 0 0 0 0 0\n"


def power_of(system):
    board, entry = identify_entry(system)
    return describe_power(system, find_power(system, board, entry), entry)


def test_the_published_sample_and_its_correction(open_board):
    power = power_of(open_board("rpi5"))
    assert power.source == "pmic"
    assert power.scope == "pmic-sum"
    assert power.total_w == pytest.approx(10.799894, abs=1e-6)
    assert power.total_corrected_w == pytest.approx(12.954859, abs=1e-6)
    assert power.rails["VDD_CORE"] == pytest.approx(9.761433, abs=1e-6)
    assert "jfikar" in power.model
    assert power.measured is True
    assert len(power.rails) == 12
    assert not {"EXT5V", "BATT"} & set(power.rails)


def test_an_older_firmwares_name_counts_and_an_unknown_output_does_not(open_board):
    text = open_board("rpi5").text("/cmd/vcgencmd-pmic_read_adc.txt")
    older = text.replace("0V8_SW", "0V8_SYS")
    assert power_of(open_board("rpi5", files={"cmd/vcgencmd-pmic_read_adc.txt": older})).total_w == pytest.approx(
        10.799894
    )
    newer = text + "\n NEW_A current(40)=2.0A\n NEW_V volt(41)=5.0V\n"
    power = power_of(open_board("rpi5", files={"cmd/vcgencmd-pmic_read_adc.txt": newer}))
    assert power.rails["NEW"] == pytest.approx(10.0)
    assert power.total_w == pytest.approx(10.799894)


@pytest.mark.parametrize("rail", ["HDMI", "DDR_VDD2", "0V8_SW"])
@pytest.mark.parametrize("how", ["dropped", "garbled"])
def test_a_listing_that_lacks_an_output_makes_no_smaller_sum(open_board, rail, how):
    text = open_board("rpi5").text("/cmd/vcgencmd-pmic_read_adc.txt")
    lines = [line for line in text.splitlines() if f"{rail}_A" not in line or how == "garbled"]
    fewer = "\n".join(line.replace("=", "=?") if f"{rail}_A" in line else line for line in lines)
    system = open_board("rpi5", files={"cmd/vcgencmd-pmic_read_adc.txt": fewer})
    source = Pmic(system, find_entry("rpi5"))
    for _ in range(3):
        reading = source.read()
        assert (reading.total_w, reading.corrected_w) == (None, None)
    assert len(system.warnings) == 1
    assert f"does not list {rail}:" in system.warnings[0]


def test_the_outputs_of_the_first_listing_are_asked_of_every_later_one(open_board, tmp_path):
    text = open_board("rpi5").text("/cmd/vcgencmd-pmic_read_adc.txt")
    answer = [text.replace("0V8_SW", "0V8_SYS")]
    system = System(tmp_path, run=lambda command, timeout_s: answer[0])
    source = Pmic(system, find_entry("rpi5"))
    assert source.read().total_w == pytest.approx(10.799894)
    answer[0] = "\n".join(line for line in answer[0].splitlines() if "1V1_SYS_A" not in line)
    assert source.read().total_w is None
    answer[0] = ""
    assert source.read().total_w is None
    answer[0] = text.replace("0V8_SW", "0V8_SYS")
    assert source.read().total_w == pytest.approx(10.799894)
    assert [("1V1_SYS" in warning) for warning in system.warnings] == [True]


def test_a_chip_that_says_nothing_flows_is_not_believed(open_board):
    text = open_board("rpi5").text("/cmd/vcgencmd-pmic_read_adc.txt")
    none = re.sub(r"=[0-9.]+A", "=0.00000000A", text)
    system = open_board("rpi5", files={"cmd/vcgencmd-pmic_read_adc.txt": none})
    reading = Pmic(system, find_entry("rpi5")).read()
    assert reading.total_w is None
    assert reading.rails["HDMI"] == 0.0  # a rail may be off
    assert len(system.warnings) == 1
    assert "pmic_read_adc" in system.warnings[0]
    assert "0 W" in system.warnings[0]


def test_half_a_pair_is_unknown_and_so_is_the_sum(open_board):
    text = open_board("rpi5").text("/cmd/vcgencmd-pmic_read_adc.txt")
    torn = "\n".join(line for line in text.splitlines() if "DDR_VDD2_V" not in line)
    system = open_board("rpi5", files={"cmd/vcgencmd-pmic_read_adc.txt": torn})
    assert Pmic(system, find_entry("rpi5")).read().total_w is None
    assert Pmic(system, find_entry("rpi5")).read().rails["DDR_VDD2"] is None


@pytest.mark.parametrize(
    "text", ["", "Can't open device file: /dev/vcio_gencmd", "VDD_CORE_A current(7)=abcA", "3V3_A current(1)=1A"]
)
def test_without_the_processors_rail_there_is_no_sum_but_the_published_model(open_board, text):
    system = open_board("rpi5", files={"cmd/vcgencmd-pmic_read_adc.txt": text, "proc/stat": HALF_BUSY})
    power = power_of(system)
    assert power.measured is False
    assert power.total_w == pytest.approx(3.457856 * 0.5 + 4.403192)
    (warning,) = [warning for warning in system.warnings if "power chip did not answer" in warning]
    assert "join the group `video`" in warning
    assert "--device /dev/vcio" in warning
    assert "modelled" in warning
    assert ("/dev/vcio_gencmd" in warning) == ("vcio" in text)  # the tool's own words


@given(st.text(max_size=300))
def test_any_text_is_parsed_without_a_crash(text):
    assert all(watts is None or isinstance(watts, float) for watts in parse_pmic(text).values())


def test_the_mailbox_message_is_laid_out_as_the_firmware_wants_it():
    message = mailbox_message("pmic_read_adc")
    assert len(message) == 4124
    assert struct.unpack_from("=6I", message) == (4124, 0, 0x00030080, 4096, 0, 0)
    assert message[24:38] == b"pmic_read_adc\0"
    assert struct.unpack_from("=I", message, 4120)[0] == 0
    assert request_code() == (0xC0086400 if struct.calcsize("P") == 8 else 0xC0046400)
    assert mailbox_answer(message) == "pmic_read_adc"
    struct.pack_into("=I", message, 20, 1)
    assert mailbox_answer(message) is None
    assert mailbox_answer(b"short") is None


def test_the_mailbox_is_asked_and_the_tool_only_where_it_is_forbidden(open_board, tmp_path):
    sample = open_board("rpi5").text("/cmd/vcgencmd-pmic_read_adc.txt")
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/vcio").write_bytes(b"")
    asked = []

    def firmware(handle, code, message):
        asked.append((code, mailbox_answer(message)))
        message[24 : 24 + len(sample) + 1] = sample.encode() + b"\0"
        return 0

    source = Pmic(System(tmp_path, run=lambda command, timeout_s: None), find_entry("rpi5"), firmware)
    assert source.read().total_w == pytest.approx(10.799894, abs=1e-6)
    assert set(asked) == {(request_code(), "pmic_read_adc")}

    def forbidden(handle, code, message):
        raise OSError(errno.EPERM, "no")

    source = Pmic(System(tmp_path, run=lambda command, timeout_s: sample), find_entry("rpi5"), forbidden)
    assert source.read().total_w == pytest.approx(10.799894, abs=1e-6)
    assert source.trouble == "/dev/vcio is forbidden"


@pytest.mark.parametrize(
    ("name", "watts", "exact"),
    [
        ("rpi4", 4.552906, True),
        ("rpi3bplus", 3.651396, True),
        ("rpi400", 4.334818, True),
        ("rpi4-32bit", 4.061799, True),
    ],
)
def test_models_at_half_use(open_board, name, watts, exact):
    power = power_of(open_board(name, files={"proc/stat": HALF_BUSY}))
    assert power.total_w == pytest.approx(watts, abs=1e-6)
    assert (power.measured, power.scope, power.source) == (False, "estimate", "model")
    assert "PowerJoular" in power.model
    if exact:
        assert "guess" not in power.model


def test_a_board_of_another_revision_is_called_a_guess(open_board):
    system = open_board(
        "rpi4",
        files={"sys/firmware/devicetree/base/model": b"Raspberry Pi 4 Model B Rev 1.5\0", "proc/stat": HALF_BUSY},
    )
    assert "guess" in power_of(system).model


def test_no_model_is_no_figure_with_the_reason(open_board):
    power = power_of(open_board("rpi-zero2w", files={"proc/stat": HALF_BUSY}))
    assert power.total_w is None
    assert "Zero 2 W" in power.note


def test_without_proc_stat_a_model_knows_nothing(open_board):
    assert power_of(open_board("rpi4", files={"proc/stat": None})).total_w is None


def test_a_model_follows_the_use_since_the_last_look_and_counts_joules(tmp_path):
    moment = 0.0
    system = System(tmp_path, clock=lambda: moment)
    (tmp_path / "proc").mkdir()
    stat = tmp_path / "proc/stat"
    stat.write_text("cpu  0 0 0 1000 0 0 0 0 0 0\n")
    model = LinearModel(system, "test", 4.0, 2.0)
    assert model.read().total_w == 2.0
    assert model.read_j() == 0.0
    moment = 10.0
    stat.write_text("cpu  300 0 0 1100 0 0 0 0 0 0\n")
    assert model.read_j() == pytest.approx(10 * (4.0 * 0.75 + 2.0))
    stat.write_text("garbage")
    assert model.read_j() is None


@given(st.text(alphabet="cpu 0123456789\n-x", max_size=200))
def test_any_stat_is_parsed_without_a_crash(text):
    ticks = parse_cpu_ticks(text)
    assert ticks is None or 0 <= ticks[0] <= ticks[1]
