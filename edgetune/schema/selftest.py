"""What `edgetune selftest` found: a report that a user may send, and that names nobody."""

from __future__ import annotations

from edgetune.schema.base import Engine, Record
from edgetune.schema.profile import Profile


class Check(Record, frozen=True):
    """One thing that was tried."""

    name: str
    passed: bool | None  # None: it could not be tried here; `detail` says why
    detail: str


class SensorSample(Record, frozen=True):
    """A power source read in quick succession."""

    source: str
    scope: str
    measured: bool
    seconds: float
    readings: int
    failed: int  # readings without a total
    distinct: int  # different totals: a live sensor that never moves is suspicious
    least_w: float | None = None
    mean_w: float | None = None
    most_w: float | None = None


class FitTry(Record, frozen=True):
    """A tiny fine-tuning run in a process of its own."""

    engine: Engine
    exit_status: int  # negative: ended by that signal
    seconds: float
    accuracy: float | None = None
    epoch_s: float | None = None
    total_j: float | None = None
    energy_measured: bool | None = None
    baseline_bytes: int | None = None
    predicted_peak_bytes: int | None = None
    measured_peak_bytes: int | None = None
    device: str | None = None
    said: str | None = None  # the end of what it complained of


class Selftest(Record, frozen=True, tag_field="schema", tag="edgetune/selftest/1"):
    """Answers `edgetune selftest`."""

    checks: list[Check]
    passed: int
    failed: int
    versions: dict[str, str | None]
    facts: dict[str, list[str]]  # strings that boards are told by, for one that the catalogue lacks
    profile: Profile
    sensor: SensorSample | None
    fits: list[FitTry]
    edgetune_version: str
    created: str
