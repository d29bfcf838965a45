"""Sizes, energies, durations and powers as people write them, in and out."""

from __future__ import annotations

import re

from edgetune.errors import InputError

_SIZES = {"": 1, "b": 1} | {
    unit: factor
    for power, letter in enumerate("kmgt", start=1)
    for unit, factor in ((f"{letter}b", 1000**power), (f"{letter}ib", 1024**power), (letter, 1000**power))
}
_ENERGIES = {"": 1.0, "mj": 1e-3, "j": 1.0, "kj": 1e3, "wh": 3600.0, "mwh": 3.6, "kwh": 3.6e6}
_DURATIONS = {"": 1.0, "ms": 1e-3, "s": 1.0, "sec": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_POWERS = {"": 1.0, "mw": 1e-3, "w": 1.0, "kw": 1e3}
_QUANTITY = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)(?:e([+-]?\d{1,2}))?\s*([a-z]*)\s*", re.IGNORECASE)


def _parse(text: str, units: dict[str, float], flag: str, examples: str, *, zero: bool = False) -> float:
    match = _QUANTITY.fullmatch(text)
    # upper and lower case are alike, but for the one letter that would make a million out of a thousandth
    mega = match and match[3].startswith("M") and match[3].lower() in ("mj", "mwh", "mw")
    if match and not mega and match[3].lower() in units:
        value = float(f"{match[1]}e{match[2] or 0}") * units[match[3].lower()]
        if value > 0 or (zero and value == 0):
            return value
    raise InputError(f"{flag} {text!r} is not understood; write it like {examples}.")


def parse_size(text: str, flag: str = "--memory", *, zero: bool = False) -> int:
    """Bytes of `1.5GB` (decimal), `512MiB` (binary) or a plain number.

    Args:
        text: what the user wrote.
        flag: where, for the message.
        zero: whether nothing at all is a size.

    Raises:
        InputError: the text is not such a size.
    """
    sizes = {unit: float(factor) for unit, factor in _SIZES.items()}
    return int(_parse(text, sizes, flag, "1.5GB, 512MiB or 800M", zero=zero))


def parse_energy(text: str, flag: str = "--energy") -> float:
    """Joules of `20kJ`, `5Wh` or a plain number; raises `InputError`."""
    return _parse(text, _ENERGIES, flag, "20kJ, 5Wh or 800J")


def parse_duration(text: str, flag: str = "--time") -> float:
    """Seconds of `30min`, `2h` or a plain number; raises `InputError`."""
    return _parse(text, _DURATIONS, flag, "90s, 30min or 2h")


def parse_power(text: str, flag: str = "--power") -> float:
    """Watts of `7W` or a plain number; raises `InputError`."""
    return _parse(text, _POWERS, flag, "7W or 6.5")


def format_size(size_bytes: float | None) -> str:
    """`1.46 GiB`, `312 MiB`; an em dash for unknown."""
    if size_bytes is None:
        return "—"
    for unit, factor in (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
        if abs(size_bytes) >= factor:
            value = size_bytes / factor
            return (
                f"{value:.2f} {unit}" if value < 10 else f"{value:.1f} {unit}" if value < 100 else f"{value:.0f} {unit}"
            )
    return f"{size_bytes:.0f} B"


def format_energy(joules: float | None) -> str:
    """`12.4 kJ`, `830 J`; an em dash for unknown."""
    if joules is None:
        return "—"
    return f"{joules / 1000:.3g} kJ" if abs(joules) >= 1000 else f"{joules:.3g} J"


def format_duration(seconds: float | None) -> str:
    """`2 h 05 min`, `3 min 20 s`, `12.3 s`; an em dash for unknown."""
    if seconds is None:
        return "—"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def format_power(watts: float | None) -> str:
    """`6.53 W`; an em dash for unknown."""
    return "—" if watts is None else f"{watts:.3g} W"


def format_rate(per_second: float | None, unit: str) -> str:
    """`143 GFLOP/s`; an em dash for unknown."""
    if per_second is None:
        return "—"
    for prefix, factor in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if per_second >= factor:
            return f"{per_second / factor:.3g} {prefix}{unit}/s"
    return f"{per_second:.3g} {unit}/s"
