"""Raspberry Pi 5, CM5 and 500: the power management chip's own converter readings, through the firmware.

`vcgencmd pmic_read_adc` lists currents and voltages; they are paired by the stem of their name (their numbers differ)
and the products add up to what the chip's outputs deliver. That is *not* the board's input: nothing on the 5 V rail
(USB, HATs, fan, NVMe) is metered, nor are converter losses. A published straight-line fit against a USB-C meter
corrects for the losses of a bare board (jfikar, RPi5-power README); it is an estimate and reported beside the raw sum,
never instead.

The firmware's mailbox is asked directly where the device may be opened (message layout: raspberrypi/utils
vcgencmd/vcgencmd.c), which saves a fork per sample; otherwise the tool is run.
"""

from __future__ import annotations

import errno
import os
import re
import struct
from collections.abc import Callable, Iterable

from edgetune.device.catalogue import BoardEntry
from edgetune.device.power.base import Facts, Judge, Reading, sum_known
from edgetune.device.system import System

DEVICES = ("/dev/vcio_gencmd", "/dev/vcio")
_COMMAND = "pmic_read_adc"
_TEXT_BYTES = 4096
_GET_GENCMD_RESULT = 0x00030080
_TOTAL_BYTES = 24 + _TEXT_BYTES + 4
_LINE = re.compile(r"^\s*(\w+)_([AV])\s+(?:current|volt)\(\d+\)=(-?\d{1,6}(?:\.\d{1,12})?)([AV])\s*$", re.MULTILINE)
_MAIN_RAIL = "VDD_CORE"  # the processor; a listing without it is not a listing of this board

Ioctl = Callable[[int, int, bytearray], int]


def parse_pmic(text: str) -> dict[str, float | None]:
    """Watts by rail: each current times the voltage of the same name; None where one half is missing.

    Voltages without a current (the 5 V input, the clock battery) carry no power figure and are no rails.
    """
    halves: dict[str, dict[str, float]] = {"A": {}, "V": {}}
    for stem, kind, value, unit in _LINE.findall(text):
        if kind == unit:
            halves[kind][stem] = float(value)
    volts = halves["V"]
    return {stem: amperes * volts[stem] if stem in volts else None for stem, amperes in halves["A"].items()}


def request_code() -> int:
    """The mailbox's `_IOWR(100, 0, char *)`: the size of a pointer is part of the code."""
    return 3 << 30 | struct.calcsize("P") << 16 | 100 << 8


def mailbox_message(command: str) -> bytearray:
    """The property message that runs one firmware command: 32-bit words, a 4096-byte text field, an end tag."""
    header = struct.pack("=6I", _TOTAL_BYTES, 0, _GET_GENCMD_RESULT, _TEXT_BYTES, 0, 0)
    return bytearray(header + command.encode().ljust(_TEXT_BYTES, b"\0") + struct.pack("=I", 0))


def mailbox_answer(message: bytes | bytearray) -> str | None:
    """The text of an answered message, or None where the firmware reports an error."""
    if len(message) < 24 or struct.unpack_from("=I", message, 20)[0] != 0:
        return None
    return bytes(message[24 : 24 + _TEXT_BYTES]).split(b"\0", 1)[0].decode(errors="replace")


class Pmic:
    """The sum of the power chip's outputs."""

    name = "pmic"
    scope = "pmic-sum"
    measured = True

    def __init__(self, system: System, entry: BoardEntry | None = None, ioctl: Ioctl | None = None) -> None:
        self.system = system
        self.entry = entry
        self.correction = entry.power.correction if entry else None
        self._names: tuple[str, ...] | None = None  # the outputs that make the total, fixed by the first good listing
        self.trouble: str | None = None  # why the firmware could not be asked
        self._judge = Judge(system)
        self._ioctl = ioctl
        self._device: str | None = None
        if system.live or ioctl:
            self._device = next((device for device in DEVICES if self._ask(device) is not None), None)

    def read(self) -> Reading:
        """All outputs now; the total only where every output that makes it is listed and no pair is torn."""
        text = self._ask(self._device) if self._device else None
        if text is None:
            text = self.system.command("vcgencmd", _COMMAND, timeout_s=2.0)
            if text and not _LINE.search(text):
                self.trouble = text.strip().splitlines()[0][:100]  # the tool says why on its standard output
        rails = parse_pmic(text or "")
        watts = {name: self._judge.believable(f"pmic_read_adc {name}", value) for name, value in rails.items()}
        total = self._judge.believable_total("pmic_read_adc", self._total_w(watts))
        fit = self.correction
        return Reading(total, watts, None if total is None or fit is None else fit.slope * total + fit.offset_w)

    def facts(self) -> Facts:
        """What the sum leaves out."""
        return Facts(
            model=self.correction.model if self.correction else None,
            notes=("sum of the power chip's outputs: USB devices, HATs, fan and converter losses are not in it",),
        )

    def _total_w(self, watts: dict[str, float | None]) -> float | None:
        """The sum of the catalogue's outputs under this firmware's names for them; outputs of new names are left out.

        A line that is missing or garbled would make a smaller sum that looks like a smaller load: then there is none.
        """
        if self._names is None:
            if _MAIN_RAIL not in watts:
                return None
            rules = self.entry.power.totals if self.entry else []
            rule = self.entry.total_rule(set(watts)) if self.entry else None
            if rules and rule is None:
                nearest = min((list(rule.rails) for rule in rules), key=lambda rails: len(set(rails) - set(watts)))
                self._lacks(name for name in nearest if name not in watts)
                return None
            self._names = tuple(rule.rails if rule else watts)
        missing = [name for name in self._names if name not in watts]
        if missing:
            if watts:  # an empty answer is a failed read, which the meter counts
                self._lacks(missing)
            return None
        return sum_known(watts[name] for name in self._names)

    def _lacks(self, names: Iterable[str]) -> None:
        """Say once which outputs a listing lacks."""
        listed = ", ".join(names)
        self._judge.warn_once(
            "pmic_read_adc",
            f"pmic_read_adc does not list {listed}: a sum without it would be too small, so the total is unknown.",
        )

    def _ask(self, device: str) -> str | None:
        """One question to the firmware, or None where the device is missing, forbidden or says no."""
        message = mailbox_message(_COMMAND)
        try:
            handle = os.open(self.system.path(device), os.O_RDWR)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM):
                self.trouble = f"{device} is forbidden"
            return None
        try:
            if self._ioctl:
                self._ioctl(handle, request_code(), message)
            else:
                import fcntl  # not on every system that may read a mounted card

                fcntl.ioctl(handle, request_code(), message, True)
        except (OSError, ImportError) as error:
            if isinstance(error, PermissionError):
                self.trouble = f"{device} is forbidden"
            return None
        finally:
            os.close(handle)
        return mailbox_answer(message)
