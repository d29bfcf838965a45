"""Which board is this? The module's part number, then the chip, then the model text, then the machine word.

A carrier board of a third party changes the model text and keeps the module's part number in the device tree, so the
part number decides. A part number that no file lists, on a chip that is known, is a generic board of that chip, never a
guess. Everything may be missing: containers hide the device tree and `/etc/nv_tegra_release`.

Sources: kernel device trees and their strings, jetson_stats `jetson_variables.py` (part numbers), meta-tegra, the
Raspberry Pi documentation (revision codes), NVIDIA's JetPack archive (releases), jetson-containers `run.sh` and
Docker's masked paths (what a container sees), kernel `drivers/soc/tegra` (`/sys/devices/soc0`).
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from edgetune.device.catalogue import BoardEntry, find_entry, load_catalogue
from edgetune.device.reading import read_number, read_raw, read_text
from edgetune.device.system import System
from edgetune.errors import InputError
from edgetune.schema import Board

# The second may be an absolute link; the third is where a container can have it (see `edgetune.device.container`).
DEVICE_TREES = ("/sys/firmware/devicetree/base", "/proc/device-tree", "/run/device-tree")
_PART = re.compile(r"\bp(\d{4})-(\d{4})")
_RELEASE = re.compile(r"^# R(\d{1,3}) \(release\), REVISION: (\d+(?:\.\d+)*)", re.MULTILINE)
_PACKAGE = re.compile(r"(\d{1,3}\.\d+(?:\.\d+)*)-")
_LONGEST = 120  # characters of a name worth keeping
_TEGRA_CHIPS = {0x21: "tegra210", 0x18: "tegra186", 0x19: "tegra194", 0x23: "tegra234", 0x26: "tegra264"}
_PLACEHOLDERS = {"to be filled by o.e.m.", "system product name", "system manufacturer", "default string", "unknown"}

JETPACKS: dict[str, str] = {
    "32.3.1": "4.3", "32.4.3": "4.4", "32.4.4": "4.4.1", "32.5": "4.5", "32.5.1": "4.5.1", "32.5.2": "4.5.1",
    "32.6.1": "4.6", "32.7.1": "4.6.1", "32.7.2": "4.6.2", "32.7.3": "4.6.3", "32.7.4": "4.6.4", "32.7.5": "4.6.5",
    "32.7.6": "4.6.6", "35.1": "5.0.2", "35.2.1": "5.1", "35.3.1": "5.1.1", "35.4.1": "5.1.2", "35.5": "5.1.3",
    "35.6": "5.1.4", "35.6.1": "5.1.5", "35.6.2": "5.1.5", "35.6.3": "5.1.5", "35.6.4": "5.1.6", "36.3": "6.0",
    "36.4": "6.1", "36.4.3": "6.2", "36.4.4": "6.2.1", "36.4.7": "6.2.1", "36.5": "6.2.2", "38.2": "7.0",
    "38.2.1": "7.0", "38.2.2": "7.0", "38.4": "7.1", "39.0": "7.2 EA", "39.2": "7.2",
}  # fmt: skip
"""JetPack by its Linux for Tegra release, without trailing zeros."""


@dataclass(frozen=True)
class CpuInfo:
    """What `/proc/cpuinfo` says that matters here."""

    processors: int = 0
    features: frozenset[str] = field(default_factory=frozenset)  # instruction-set flags
    x86: bool = False
    model: str | None = None  # board text, on a Raspberry Pi
    revision: str | None = None  # revision code, on a Raspberry Pi


@dataclass(frozen=True)
class PiRevision:
    """A Raspberry Pi's revision code, taken apart."""

    type: int
    soc: str | None
    memory_bytes: int
    revision: str


def identify(system: System) -> Board:
    """What machine this is. Never fails: what can't be told is None, and the family then is a generic one."""
    return identify_entry(system)[0]


def identify_entry(system: System) -> tuple[Board, BoardEntry]:
    """The board and its family's catalogue entry."""
    cpu = parse_cpuinfo(read_text(system, "/proc/cpuinfo") or "")
    compatible = parse_strings(_device_tree(system, "compatible"))
    kernel = read_text(system, "/proc/sys/kernel/osrelease") or ""
    if not compatible:
        compatible = _chip_without_device_tree(system)
    model = next(iter(parse_strings(_device_tree(system, "model"))), None) or cpu.model or _other_model(system, kernel)
    source = _device_tree(system, "nvidia,dtsfilename")[:4096].decode(errors="ignore")  # JetPack 4 and 5
    parts = _parts([*compatible, source])
    revision = parse_revision(cpu.revision or "") or parse_revision(_device_tree(system, "system/linux,revision").hex())
    arch = _arch(system, cpu)
    entry, module = recognise(compatible, parts, model, revision, arch, kernel)
    l4t = _l4t(system) if entry.kind == "jetson" else None
    board = Board(
        name=_name(system, entry, module, model),
        family=entry.family,
        module=module,
        soc=_soc(compatible) or (revision.soc if revision else None),
        jetpack=jetpack_of(l4t) if l4t else None,
        l4t=l4t,
        os=_os(system),
        arch=arch,
    )
    return board, entry


def entry_of(board: Board) -> BoardEntry:
    """The catalogue entry of a board, also of one that an older or newer edgetune named."""
    try:
        return find_entry(board.family)
    except InputError:
        return recognise([], [], None, None, board.arch, "")[0]


def recognise(
    compatible: list[str],
    parts: list[str],
    model: str | None,
    revision: PiRevision | None,
    arch: str | None,
    kernel: str,
    catalogue: Mapping[str, BoardEntry] | None = None,
) -> tuple[BoardEntry, str | None]:
    """The family and the module's part number.

    Args:
        compatible: the device tree's strings, most specific first.
        parts: part numbers found anywhere, most specific first, modules before carriers.
        model: the board's own text.
        revision: the Raspberry Pi revision code.
        arch: the machine word.
        kernel: the kernel's release, whose suffix names the vendor.
        catalogue: entries to choose from; the shipped ones otherwise.
    """
    entries = load_catalogue() if catalogue is None else catalogue
    for part in parts:
        for entry in entries.values():
            if part in entry.modules:
                return entry, part
    for item in compatible:
        for entry in entries.values():
            if item in entry.recognise.compatible:
                return entry, None
    same_chip = [entry for entry in entries.values() if set(entry.recognise.soc).intersection(compatible)]
    unlisted = parts[0] if parts and any(entry.kind == "jetson" for entry in same_chip) else None
    if unlisted is None:
        by_text = _by_model(same_chip or entries.values(), model)
        if by_text is not None:
            return by_text, None
    if "generic-jetson" in entries and ("tegra" in kernel or entries["generic-jetson"] in same_chip):
        return entries["generic-jetson"], unlisted
    if revision is not None:
        for entry in entries.values():
            if revision.type in entry.recognise.revision_types:
                return entry, None
    for entry in entries.values():
        if arch in entry.recognise.arch:
            return entry, None
    return entries["generic"], None


def jetpack_of(l4t: str) -> str:
    """JetPack's version by the release of Linux for Tegra; a release not known yet is named, not guessed."""
    bare = l4t
    while bare.count(".") > 1 and bare.endswith(".0"):
        bare = bare[:-2]
    return JETPACKS.get(bare) or f"JetPack unknown (L4T {l4t})"


# ---------------------------------------------------------------------------------------------------------------------
# parsers: text to value, for anything a file may hold
# ---------------------------------------------------------------------------------------------------------------------


def parse_strings(raw: bytes) -> list[str]:
    """A device-tree property's NUL-separated strings, printable characters only."""
    texts = ("".join(filter(str.isprintable, part.decode(errors="ignore"))) for part in raw[:4096].split(b"\0"))
    return [text.strip()[:_LONGEST] for text in texts if text.strip()]


def parse_tegra_release(text: str) -> str | None:
    """Linux for Tegra's release (`36.4.4`) in `/etc/nv_tegra_release`; its BOARD field is not to be trusted."""
    match = _RELEASE.search(text)
    return f"{match[1]}.{match[2]}" if match and len(match[2]) < 20 else None


def parse_package_version(text: str) -> str | None:
    """The release in the version of package nvidia-l4t-core, `36.4.4-20250616085344`."""
    match = _PACKAGE.match(text.strip().strip("'\""))
    return match[1] if match and len(match[1]) < 20 else None


def parse_cpuinfo(text: str) -> CpuInfo:
    """Processors, instruction-set flags that every core has, and a Raspberry Pi's own lines."""
    processors, x86, features = 0, False, None
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        key, value = key.strip(), value.strip()
        if not colon:
            continue
        if key == "processor" and value.isdigit():
            processors += 1
        elif key in ("Features", "flags"):
            x86 = x86 or key == "flags"
            features = frozenset(value.split()) if features is None else features & frozenset(value.split())
        elif key in ("Model", "Revision"):
            fields[key] = "".join(filter(str.isprintable, value))[:_LONGEST]
    model, revision = fields.get("Model") or None, fields.get("Revision") or None
    return CpuInfo(processors, features or frozenset(), x86, model, revision)


def parse_revision(code: str) -> PiRevision | None:
    """A revision code of the new style (`c03112`), or None for older ones and anything else."""
    if not re.fullmatch(r"[0-9a-fA-F]{1,8}", code):
        return None
    value = int(code, 16)
    if not value >> 23 & 1:
        return None
    soc = {2: "bcm2837", 3: "bcm2711", 4: "bcm2712"}.get(value >> 12 & 0xF)
    return PiRevision(value >> 4 & 0xFF, soc, (256 << 20) << (value >> 20 & 7), f"1.{value & 0xF}")


def parse_assignments(text: str) -> dict[str, str]:
    """`KEY=value` lines with or without quotes, as in os-release and armbian-release."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        key, equals, value = line.strip().partition("=")
        if equals and key.isidentifier():
            found[key] = "".join(filter(str.isprintable, value)).strip().strip("\"'")[:_LONGEST]
    return found


def board_revision(name: str) -> str | None:
    """`1.2` of `Raspberry Pi 4 Model B Rev 1.2`."""
    match = re.search(r"\bRev (\d+\.\d+)$", name)
    return match[1] if match else None


# ---------------------------------------------------------------------------------------------------------------------
# pieces
# ---------------------------------------------------------------------------------------------------------------------


def _device_tree(system: System, name: str) -> bytes:
    for base in DEVICE_TREES:
        raw = read_raw(system, f"{base}/{name}")
        if raw is not None:
            return raw
    return b""


def _chip_without_device_tree(system: System) -> list[str]:
    """What the device tree would say of the chip. Docker hides /sys/firmware, and with it /proc/device-tree."""
    if (read_text(system, "/sys/devices/soc0/family") or "").lower() != "tegra":
        return []
    chip = _TEGRA_CHIPS.get(read_number(system, "/sys/devices/soc0/soc_id") or 0)
    return [f"nvidia,{chip}"] if chip else []


def _other_model(system: System, kernel: str) -> str | None:
    """The board's text where the device tree is hidden: the chip driver's copy, or the one jetson-containers mounts."""
    places = ["/sys/devices/soc0/machine", *(["/tmp/nv_jetson_model"] if "tegra" in kernel else [])]
    texts = (parse_strings(read_raw(system, place) or b"") for place in places)
    return next((text[0] for text in texts if text), None)


def _parts(strings: Iterable[str]) -> list[str]:
    """Part numbers, most specific string first; in `carrier+module` the module comes first."""
    found = []
    for text in strings:
        found += [f"p{match[1]}-{match[2]}" for piece in reversed(text.split("+")) for match in _PART.finditer(piece)]
    return list(dict.fromkeys(found))


def _by_model(entries: Iterable[BoardEntry], model: str | None) -> BoardEntry | None:
    """The entry whose longest text occurs in the model text."""
    folded = (model or "").lower() + " "
    hits = [(len(text), entry) for entry in entries for text in entry.recognise.model if text.lower() in folded]
    return max(hits, key=lambda hit: hit[0])[1] if hits else None


def _soc(compatible: list[str]) -> str | None:
    """The chip: Tegra's own entry, else the least specific one."""
    tegra = next((item for item in compatible if item.startswith("nvidia,tegra")), None)
    chosen = tegra or (compatible[-1] if len(compatible) > 1 else None)
    return chosen.rpartition(",")[2].replace("tegra23x", "tegra234") if chosen else None


def _l4t(system: System) -> str | None:
    """The release, from its file or, where an image lacks it, from the package manager."""
    found = parse_tegra_release(read_text(system, "/etc/nv_tegra_release") or "")
    if found is None:
        shown = system.command("dpkg-query", "--showformat=${Version}", "--show", "nvidia-l4t-core")
        found = parse_package_version(shown or "")
    return found


def _os(system: System) -> str | None:
    text = read_text(system, "/etc/os-release") or read_text(system, "/usr/lib/os-release") or ""
    return parse_assignments(text).get("PRETTY_NAME") or None


def _arch(system: System, cpu: CpuInfo) -> str | None:
    """The machine word of the user land: what wheels are chosen by."""
    if system.live:
        machine: str | None = os.uname().machine
        narrow = struct.calcsize("P") == 4
    else:
        machine = (system.command("uname", "-m") or "").strip()[:20] or None
        wide_loader, narrow_loader = "/lib/ld-linux-aarch64.so.1", "/lib/ld-linux-armhf.so.3"
        narrow = system.exists(narrow_loader) and not system.exists(wide_loader)
        if machine is None:
            arm = system.exists(wide_loader) or "asimd" in cpu.features
            machine = "x86_64" if cpu.x86 and "lm" in cpu.features else "aarch64" if arm else None
    if machine == "aarch64" and narrow:
        system.warn(
            "The kernel is 64-bit and the user land 32-bit, for which no torch wheels exist: install a 64-bit system."
        )
        return "armv7l"
    return machine


def _name(system: System, entry: BoardEntry, module: str | None, model: str | None) -> str:
    """The maker's text where it names something a person knows, else the module's or family's name."""
    known = entry.modules[module].name if module in entry.modules else entry.name
    if model and model not in entry.code_names:
        return model
    if model or entry.kind != "generic":
        return known
    armbian = parse_assignments(read_text(system, "/etc/armbian-release") or "").get("BOARD_NAME")
    dmi = [(read_text(system, f"/sys/class/dmi/id/{name}") or "")[:_LONGEST] for name in ("sys_vendor", "product_name")]
    words = " ".join(
        "".join(filter(str.isprintable, word)) for word in dmi if word and word.lower() not in _PLACEHOLDERS
    )
    return armbian or words or entry.name
