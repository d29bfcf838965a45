"""Reading one number out of a pseudo-file, and what to say when that fails.

A sensor that is switched off (ENODATA, EAGAIN) or not there is unknown and no one's fault. A sensor that is there and
broken, forbidden or talking nonsense is unknown too, and is named once in the system's warnings.
"""

from __future__ import annotations

import errno

from edgetune.device.system import System

_ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.ENXIO, errno.ELOOP}
_ASLEEP = {errno.ENODATA, errno.EAGAIN, errno.EBUSY, errno.ETIMEDOUT}
_LONGEST = 40  # characters; no number we read is longer


def read_raw(system: System, path: str) -> bytes | None:
    """The content of a file, or None; a file that is there and can't be read is named in the warnings."""
    try:
        return system.read_bytes(path)
    except OSError as error:
        if error.errno not in _ABSENT | _ASLEEP:
            system.warn(f"{path} can't be read ({error.strerror or error}); what it would say is unknown.")
        return None


def read_text(system: System, path: str) -> str | None:
    """The stripped text of a file, or None; see `read_raw`."""
    raw = read_raw(system, path)
    return None if raw is None else raw.decode(errors="replace").strip("\0 \t\r\n")


def parse_number(text: str, base: int = 10) -> int | None:
    """The whole number a pseudo-file holds, or None for anything else."""
    text = text.strip("\0 \t\r\n")
    if not 0 < len(text) <= _LONGEST or not text.isascii() or "_" in text:
        return None
    try:
        return int(text, base)
    except ValueError:
        return None


def read_number(system: System, path: str, base: int = 10) -> int | None:
    """The whole number in a file, or None; nonsense and failed reads are named in the warnings."""
    text = read_text(system, path)
    if text is None:
        return None
    number = parse_number(text, base)
    if number is None:
        system.warn(f"{path} holds no number; what it would say is unknown.")
    return number
