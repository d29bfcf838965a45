"""What a benchmark keeps: a line per run while it goes on, one record of medians and ratios at the end.

`runs.jsonl` is a log of `Run`; `bench.json` is a `Bench`, made from that log alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median

import msgspec

from edgetune.schema import Record

# Settings by which files of the same name are told apart, in words.
DIGESTS = {"weights_digest": "weights", "data_digest": "images"}
MADE_UP = "made up: "  # how `Settings.data` begins where the images are


class Settings(Record, frozen=True):
    """What every method of a benchmark has in common."""

    workload: str | None  # None: the user's own folder
    model: str
    weights: str | None  # the file's name; None: the package's or the hub's
    data: str  # the folder's name, or how the images were made
    image_size: int
    batch_size: int
    epochs: int
    threads: int
    seed: int  # of the first repetition; each further one adds 1
    augment: bool
    flip: bool
    classes: int
    train_images: int
    val_images: int
    evaluate_steps: int = 0  # steps between the points of the accuracy's course; 0: only at the end
    power_w: float | None = None  # what the user says the machine draws; energy is then modelled
    sensors: str | None = None  # the name of the root they are read under; None: this machine's own
    weights_digest: str | None = None  # SHA-256 of the file; None: of an earlier version, or no file was given
    data_digest: str | None = None  # SHA-256 of the images' names and sizes; None: likewise, or they are made up

    @property
    def made_up(self) -> bool:
        """Whether the images are, on which every method is right: their accuracy says nothing."""
        return self.data.startswith(MADE_UP)


class Entry(Record, frozen=True):
    """One row of the benchmark: a method under the arguments it is run with."""

    name: str
    method: str
    arguments: tuple[str, ...] = ()
    environment: dict[str, str] = msgspec.field(default_factory=dict)
    note: str | None = None  # how it is run, in words


class Machine(Record, frozen=True):
    """Where a run took place."""

    processor: str
    cores: int | None
    memory_bytes: int | None
    kernel: str
    python: str
    versions: dict[str, str]
    edgetune_version: str
    commit: str | None = None  # of a source checkout


class CurvePoint(Record, frozen=True):
    """The accuracy after some steps, and the training seconds and joules until then; evaluations are in neither."""

    step: int
    accuracy: float
    train_s: float
    train_j: float | None


class Figures(Record, frozen=True):
    """What one run measured, in the sense of docs/artifacts.md."""

    baseline_bytes: int | None
    peak_bytes: int | None
    epochs_s: list[float]
    eval_s: float
    accuracy: float | None  # of the last epoch
    train_losses: list[float]  # mean of each epoch
    images: int
    train_flops_per_image: float
    predicted_above_baseline_bytes: int | None = None  # modelled; None where nothing predicts it
    bytes_written: int | None = None  # None: not counted
    warnings: tuple[str, ...] = ()
    epochs_j: list[float | None] = msgspec.field(default_factory=list)  # gross
    energy_source: str | None = None
    energy_scope: str | None = None
    energy_measured: bool | None = None  # None: no joules
    curve: list[CurvePoint] = msgspec.field(default_factory=list)
    epoch_spans_s: list[tuple[float, float]] = msgspec.field(default_factory=list)  # on the monotonic clock
    augmented: bool | None = None  # False: every epoch saw the plain images; None: of an earlier version

    @property
    def above_baseline_bytes(self) -> int | None:
        """Measured peak above baseline."""
        if self.peak_bytes is None or self.baseline_bytes is None:
            return None
        return self.peak_bytes - self.baseline_bytes

    @property
    def epoch_s(self) -> float | None:
        """Mean over all epochs, the first one with whatever it builds for the others included."""
        return fmean(self.epochs_s) if self.epochs_s else None

    @property
    def first_epoch_s(self) -> float | None:
        """The first epoch."""
        return self.epochs_s[0] if self.epochs_s else None

    @property
    def later_epoch_s(self) -> float | None:
        """Mean from the second epoch on; None where there was one."""
        return fmean(self.epochs_s[1:]) if len(self.epochs_s) > 1 else None

    @property
    def epoch_j(self) -> float | None:
        """Gross joules of an epoch, the mean over all; None where one is unknown."""
        known = [joules for joules in self.epochs_j if joules is not None]
        return fmean(known) if known and len(known) == len(self.epochs_s) else None


class Run(Record, frozen=True):
    """One run in a process of its own: a line of `runs.jsonl`. Either `figures` or `error` is None."""

    entry: Entry
    repetition: int  # from 0
    place: int  # in the order of its repetition, from 0
    seed: int
    command: str  # folders and files of this machine left out
    total_s: float | None  # process start to exit; None where it failed
    others_share: float | None  # of all cores' time during the run: what other processes took
    throttled: bool | None
    figures: Figures | None
    error: str | None
    machine: Machine
    created: str
    idle_w: float | None = None  # measured just before; None where no sensor measures
    gemm_flops: float | None = None  # FLOP/s of plain fp32 matrix products, measured just before
    temperatures_mc: dict[str, tuple[int | None, int | None]] = msgspec.field(default_factory=dict)  # before, after
    gemm_after_flops: float | None = None  # and just after

    @property
    def rate_flops(self) -> float | None:
        """The machine's rate, the better of before and after: what others slowed is no yardstick."""
        return max(filter(None, (self.gemm_flops, self.gemm_after_flops)), default=None)


class Spread(Record, frozen=True):
    """One figure over the repetitions."""

    median: float
    low: float
    high: float
    values: list[float]  # in the order of `MethodRow.ended_well`, where it is a method's

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Spread | None:
        """None where a value is unknown or there is none."""
        known = [value for value in values if value is not None]
        if not known or len(known) < len(values):
            return None
        return cls(median=median(known), low=min(known), high=max(known), values=known)

    @classmethod
    def known(cls, values: Sequence[float | None]) -> Spread | None:
        """Over the values that are known; None where there is none."""
        return cls.of([value for value in values if value is not None])


class Ratios(Record, frozen=True):
    """A method's figures divided by another's (see `MethodRow.by`): below 1 is less memory, less time."""

    above_baseline: float | None
    epoch: float | None
    later_epoch: float | None
    epoch_j: float | None = None


class Reach(Record, frozen=True):
    """What it took to come to a share of full fine-tuning's accuracy; None where not every repetition did."""

    share: float
    accuracy: float  # that share of the reference
    reached: int  # repetitions
    seconds: Spread | None = None
    joules: Spread | None = None


class MethodRow(Record, frozen=True):
    """One method's figures over the repetitions that ended well."""

    entry: Entry
    command: str | None  # of its first run
    runs: int
    errors: list[str]  # of repetitions that failed
    baseline_bytes: Spread | None = None
    above_baseline_bytes: Spread | None = None
    predicted_above_baseline_bytes: Spread | None = None  # modelled
    peak_bytes: Spread | None = None  # of the whole process tree, the bare process included
    epoch_s: Spread | None = None
    first_epoch_s: Spread | None = None
    later_epoch_s: Spread | None = None
    image_s: Spread | None = None  # epoch_s over the images of an epoch
    total_s: Spread | None = None
    accuracy: Spread | None = None
    train_flops_per_image: Spread | None = None
    bytes_written: Spread | None = None
    epoch_j: Spread | None = None  # gross
    net_epoch_j: Spread | None = None  # above the idle power measured before each run
    energy_measured: bool | None = None  # False: modelled; None: no joules
    energy_source: str | None = None
    energy_scope: str | None = None
    gemm_share: Spread | None = None  # modelled FLOPs per second of the epochs over the machine's rate around them
    hottest_c: Spread | None = None  # the hottest zone before or after
    reach: list[Reach] = msgspec.field(default_factory=list)
    curve: list[CurvePoint] = msgspec.field(default_factory=list)  # of the first repetition that ended well
    to_eager: Ratios | None = None
    to_alast: Ratios | None = None
    ended_well: list[int] = msgspec.field(default_factory=list)  # repetitions, rising; none: of an earlier version
    augmented: bool | None = None  # False: trained on plain images, whatever the others did; None: not recorded

    def by(self, other: MethodRow | None, figure: str) -> float | None:
        """A figure of this method divided by another's: the median of the repetitions' ratios.

        Runs of one repetition are neighbours in time. Where a machine is slower an hour or a day later, it is for both;
        a ratio of medians could be that of two runs that have no more in common than their machine. Without a
        repetition in common the medians are all there is.

        Args:
            other: the method to divide by.
            figure: the name of a field that is a `Spread`.

        Returns:
            None where either has no such figure.
        """
        mine: Spread | None = getattr(self, figure)
        theirs: Spread | None = getattr(other, figure) if other is not None else None
        if other is None or mine is None or theirs is None:
            return None
        if figure in ("epoch_j", "net_epoch_j") and self.energy_scope != other.energy_scope:
            return None  # joules of different things
        found = other._of_repetitions(theirs)
        shared = [value / found[at] for at, value in self._of_repetitions(mine).items() if found.get(at)]
        if shared:
            return median(shared)
        return mine.median / theirs.median if theirs.median > 0 else None

    def _of_repetitions(self, figure: Spread) -> dict[int, float]:
        return dict(zip(self.ended_well, figure.values, strict=True)) if self.ended_well else {}


class Bench(Record, frozen=True, tag_field="schema", tag="edgetune/bench/1"):
    """Methods side by side; written by `edgetune bench`."""

    settings: Settings
    repetitions: int
    methods: list[MethodRow]
    memory_baseline: str | None  # the eager variant with the lowest peak, by which `to_eager` divides memory
    time_baseline: str | None  # the one with the fastest epochs, by which it divides times
    machines: list[Machine]  # one, unless the benchmark was taken up elsewhere or with other versions
    warnings: list[str]
    edgetune_version: str
    created: str
    full_accuracy: float | None = None  # that `reach` counts shares of: the median of full fine-tuning's
    full_accuracy_of: str | None = None  # whose it is
    idle_w: Spread | None = None  # before the runs
    gemm_flops: Spread | None = None
