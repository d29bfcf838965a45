"""Taking out of a report whom the machine belongs to: names, addresses and serial numbers.

Names of users and hosts are replaced where a text is a sentence or a path; a single word (`torch`, `cpu`) is a term of
the report, whatever its owner is called. Numbers that identify a machine are replaced everywhere.
"""

from __future__ import annotations

import getpass
import os
import re
import socket
from pathlib import Path
from typing import Any

from edgetune.device.system import System

_SERIALS = (
    "/proc/device-tree/serial-number",
    "/sys/firmware/devicetree/base/serial-number",
    "/etc/machine-id",
    "/sys/class/dmi/id/product_serial",
    "/sys/class/dmi/id/board_serial",
    "/sys/class/dmi/id/product_uuid",
)
_PATTERNS = (
    (re.compile(r"\b[0-9a-fA-F]{2}(?:[:-][0-9a-fA-F]{2}){5}\b"), "<MAC>"),
    (re.compile(r"\b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b"), "<UUID>"),
    (re.compile(r"\b[0-9a-fA-F]{32,64}\b"), "<ID>"),  # machine and container ids
    (re.compile(r"/(home|Users)/[^/\s:'\"]+"), r"/\1/<user>"),
    (re.compile(r"\buser-\d+\.slice\b|\buser@\d+\.service\b"), "<user's group>"),
)
_SHORTEST = 3  # letters; a shorter name is found inside other words too easily
_EVERYBODY = {"root", "user", "nobody", "localhost", "ubuntu", "debian", "nvidia", "jetson", "raspberrypi", "edgetune"}


class Private:
    """What must not be told, and its removal."""

    def __init__(self, names: list[str], homes: list[str], serials: list[str]) -> None:
        self.names = [name for name in names if len(name) >= _SHORTEST and name.lower() not in _EVERYBODY]
        self.homes = sorted((home for home in homes if len(home) > 1), key=len, reverse=True)
        self.serials = [serial for serial in serials if len(serial) >= 6]

    @classmethod
    def of(cls, system: System) -> Private:
        """This machine's and its user's."""
        names, homes = [socket.gethostname(), socket.gethostname().partition(".")[0]], [os.path.expanduser("~")]
        try:
            names.append(getpass.getuser())
        except (KeyError, OSError):  # an id without an entry, as in containers
            pass
        serials = [system.text(path) or "" for path in _SERIALS]
        serials += re.findall(r"^Serial\s*:\s*(\S+)", system.text("/proc/cpuinfo") or "", re.MULTILINE)
        return cls(names, [home for home in homes if home != str(Path("/"))], serials)

    def clean(self, value: Any) -> Any:
        """`value` (strings, lists and dictionaries in any depth) without what identifies somebody."""
        if isinstance(value, str):
            return self.clean_text(value)
        if isinstance(value, list):
            return [self.clean(item) for item in value]
        if isinstance(value, dict):
            return {key: self.clean(item) for key, item in value.items()}
        return value

    def clean_text(self, text: str) -> str:
        """One string without it."""
        for serial in self.serials:
            text = text.replace(serial, "<serial>")
        for home in self.homes:
            text = re.sub(rf"{re.escape(home)}(?=[/\s:'\"]|$)", "~", text)
        for pattern, instead in _PATTERNS:
            text = pattern.sub(instead, text)
        if " " in text or "/" in text:
            for name in self.names:
                text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", "<name>", text)
        return text
