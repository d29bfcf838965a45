"""The board catalogue: what `devices/*.toml` says of each board family, as typed and checked records.

One file a family; adding a board is adding a file. An entry says how the family is recognised, which rails add up to
its total power and what that total covers, which published model stands in where there is no sensor, what to beware of,
and what the data sheet promises (for sanity checks, never as a measurement).

Files are read when asked for and checked by type: an unknown key, a wrong type or a contradiction names file and key.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import msgspec

from edgetune.errors import InputError
from edgetune.resources import resource_folder

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Kind = Literal["jetson", "raspberry-pi", "generic"]
Scope = Literal["module", "board-input", "soc-rails", "pmic-sum", "cpu-package", "estimate", "wall", "battery"]


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of what a file may hold: frozen, and a misspelt key is an error."""


class Recognition(_Part, frozen=True):
    """How a family is told. Module part numbers (`BoardEntry.modules`) come first, then these from top to bottom."""

    compatible: list[str] = []  # device-tree entries that only this family has
    soc: list[str] = []  # device-tree entries of its chip, often shared between families
    model: list[str] = []  # parts of the model text, upper and lower case alike
    revision_types: list[int] = []  # bits 4 to 11 of a Raspberry Pi's revision code
    arch: list[str] = []  # machine names, for the generic entries: the last resort


class Nominal(_Part, frozen=True):
    """What the data sheet promises: sanity ranges for probes, nothing else."""

    cpu: str | None = None
    cores: int | None = None
    cpu_hz: float | None = None
    memory_bytes_per_s: float | None = None
    gpu_cores: int | None = None
    gpu_hz: float | None = None
    fp32_flops: float | None = None
    fp16_flops: float | None = None  # dense
    bf16: bool | None = None  # the processor that trains multiplies bf16 in hardware
    compute_capability: str | None = None


class Module(_Part, frozen=True):
    """One module or board revision of a family, by its part number."""

    name: str
    memory_gb: float | None = None  # as sold; less is visible
    nominal: Nominal = Nominal()  # what differs from the family's


class TotalRule(_Part, frozen=True):
    """Rails that add up to the board's total. The first rule whose rails all exist holds; others are never added."""

    rails: list[str]
    scope: Scope
    verified: bool = True  # False: published sources disagree, or the board is unknown
    note: str | None = None


class Correction(_Part, frozen=True):
    """A published fit from a sensor's total to the power at the supply: W = slope x total + offset."""

    model: str
    slope: float
    offset_w: float
    source: str


class PowerModel(_Part, frozen=True):
    """A published fit from CPU use to watts for a board without a sensor: W = slope x use (0 to 1) + idle."""

    name: str
    slope_w: float
    idle_w: float
    source: str
    revision: str | None = None  # the board revision it was measured on, as the model text ends: "1.2"
    bits: Literal[32, 64] | None = None


class PowerRules(_Part, frozen=True):
    """Where the board's power comes from."""

    sensor: Literal["ina3221", "ina238", "rpi-pmic", "rapl", "none"]
    totals: list[TotalRule] = []
    contained: list[str] = []  # known rails that lie inside a total: shown, never added
    correction: Correction | None = None
    models: list[PowerModel] = []
    no_sensor: str | None = None  # why there is no figure, as a sentence


class Mode(_Part, frozen=True):
    """A power mode the maker ships. Its name is not a power cap."""

    id: int
    name: str
    note: str | None = None


class BoardEntry(_Part, frozen=True):
    """One board family: the content of `devices/<family>.toml`."""

    name: str
    kind: Kind
    recognise: Recognition
    power: PowerRules
    sources: list[str]
    aliases: list[str] = []
    code_names: list[str] = []  # model texts that name nothing a person knows
    unified_memory: bool | None = None  # CPU and GPU share one memory; None: depends on the machine
    cuda: bool | None = None
    modules: dict[str, Module] = {}
    visible_mib: list[int] = []  # smallest and largest MemTotal seen
    nominal: Nominal = Nominal()
    modes: list[Mode] = []
    traps: list[str] = []
    family: str = ""  # the file's name; never written in the file

    def nominal_of(self, module: str | None) -> Nominal:
        """The family's nominal figures with the module's own in their place."""
        own = self.modules[module].nominal if module in self.modules else Nominal()
        values = {name: getattr(own, name) for name in own.__struct_fields__}
        return msgspec.structs.replace(
            self.nominal, **{name: value for name, value in values.items() if value is not None}
        )

    def total_rule(self, rails: set[str]) -> TotalRule | None:
        """The rule that makes the total out of these rails, if one does."""
        return next((rule for rule in self.power.totals if rails.issuperset(rule.rails)), None)

    def power_model(self, revision: str | None, bits: int | None) -> tuple[PowerModel, bool] | None:
        """The published model nearest to this board revision, and whether it was measured on this very one.

        A model for the other word length is never used; another revision's is a guess, which the caller must say, and
        so is one for a word length while the board's is unknown. A model without a revision was published for them all.
        """
        fitting = [model for model in self.power.models if None in (model.bits, bits) or model.bits == bits]
        for wanted in (revision, None):
            for model in fitting:
                if model.revision == wanted:
                    return model, model.bits in (None, bits)
        return (fitting[0], False) if fitting else None


def parse_entry(text: str, family: str, source: str) -> BoardEntry:
    """The entry in a TOML text; `source` names it in errors.

    Raises:
        InputError: the text is no TOML, a key is unknown, missing or of the wrong type, or keys contradict each other.
    """
    try:
        raw: dict[str, Any] = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a ValueError of another kind is a number of thousands of digits
        raise InputError(f"{source} is not valid TOML ({error}); correct it there.") from None
    if "family" in raw:
        raise InputError(f"{source}: key `family` is the file's name and can't be set; remove it.")
    try:
        entry = msgspec.convert(raw | {"family": family}, BoardEntry)
    except msgspec.ValidationError as error:
        raise InputError(f"{source}: {_named_key(str(error))}; correct that key.") from None
    for key, problem in _contradictions(entry):
        raise InputError(f"{source}: key `{key}` {problem}; correct that key.")
    return entry


@lru_cache(maxsize=4)
def load_catalogue(folder: Path | None = None) -> dict[str, BoardEntry]:
    """Every family by name, from the files that ship with edgetune or from another folder.

    Raises:
        InputError: a file can't be read or is wrong, or two files claim the same module, name or device-tree entry.
    """
    entries: dict[str, BoardEntry] = {}
    claims: dict[str, str] = {}
    for path in sorted((folder or resource_folder("devices")).glob("*.toml")):
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path} can't be read ({error}); check the file.") from None
        entry = parse_entry(text, path.stem, str(path))
        for key, claim in _claims(entry):
            if claim in claims:
                raise InputError(f"{path}: key `{key}` claims {claim!r}, which {claims[claim]} has; remove one.")
            claims[claim] = path.name
        entries[path.stem] = entry
    return entries


def find_entry(name: str) -> BoardEntry:
    """The entry of a family, alias, marketing name or module part number, upper and lower case alike.

    Raises:
        InputError: no entry has the name.
    """
    catalogue = load_catalogue()
    wanted = name.strip().lower()
    for entry in catalogue.values():
        names = (entry.family, entry.name, *entry.aliases, *entry.modules, *(m.name for m in entry.modules.values()))
        if wanted in (known.lower() for known in names):
            return entry
    raise InputError(f"No board is called {name!r}; `edgetune devices list` shows the {len(catalogue)} known ones.")


def _named_key(message: str) -> str:
    """The library's message with `$.power.totals[0].scope` read as the key it is."""
    problem, _, path = message.partition(" - at `$")
    where = path.rstrip("`").lstrip(".")
    return f"key `{where}`: {problem}" if where else problem


def _contradictions(entry: BoardEntry) -> list[tuple[str, str]]:
    """What types can't say: key and problem."""
    power, found = entry.power, []
    if power.sensor == "none" and power.totals:
        found.append(("power.totals", "has rails though `power.sensor` is none"))
    if power.sensor in ("ina3221", "ina238", "rpi-pmic") and not power.totals:
        found.append(("power.totals", f"is missing: a board with {power.sensor} must say which rails make its total"))
    if power.sensor == "none" and not power.models and not power.no_sensor:
        found.append(("power.no_sensor", "is missing: say why there is neither sensor nor model"))
    for index, rule in enumerate(power.totals):
        if not rule.rails or len(set(rule.rails)) < len(rule.rails):
            found.append((f"power.totals[{index}].rails", "is empty or names a rail twice"))
        if set(rule.rails) & set(power.contained):
            found.append((f"power.totals[{index}].rails", "adds a rail that `power.contained` says is inside a total"))
    for index, model in enumerate(power.models):
        if model.slope_w <= 0 or model.idle_w <= 0:
            found.append((f"power.models[{index}]", "has a slope or idle power that is not positive"))
    if power.correction and (power.correction.slope <= 0 or not power.totals):
        found.append(("power.correction", "has no positive slope, or no total to correct"))
    recognise = entry.recognise
    if not any((recognise.compatible, recognise.soc, recognise.model, recognise.arch, entry.modules)):
        found.append(("recognise", "is empty: nothing can be recognised as this board"))
    if entry.visible_mib and (len(entry.visible_mib) != 2 or not 0 < entry.visible_mib[0] <= entry.visible_mib[1]):
        found.append(("visible_mib", "must be the smallest and the largest MemTotal seen, in MiB"))
    if not entry.sources:
        found.append(("sources", "is empty: say where the figures come from"))
    if len({mode.id for mode in entry.modes}) < len(entry.modes):
        found.append(("modes", "has an id twice"))
    return found


def _claims(entry: BoardEntry) -> list[tuple[str, str]]:
    """What only one file may claim: key and value."""
    return [
        *(("modules", module) for module in entry.modules),
        *(("recognise.compatible", item) for item in entry.recognise.compatible),
        *(("recognise.revision_types", f"Raspberry Pi type {item:#x}") for item in entry.recognise.revision_types),
        *(("aliases", alias.lower()) for alias in (entry.name, *entry.aliases)),
    ]
