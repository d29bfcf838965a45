"""The artifacts that flow between the rooms: profile, plan, run, result. Typed records, JSON on disk.

Every quantity carries its unit in its name, unknown is `None` and never 0, and what was not measured says so. Records
are frozen: an artifact is read and answered with another artifact, never edited in place. Readers ignore fields they do
not know, so that a newer edgetune's files stay readable.
"""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from edgetune.errors import InputError
from edgetune.files import write_atomically

Engine = Literal["torch", "onnx"]
Device = Literal["cpu", "cuda"]
StoppedBy = Literal["epochs", "patience", "memory", "energy", "time", "user", "nan"]


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """Base of every record."""


# ---------------------------------------------------------------------------------------------------------------------
# profile
# ---------------------------------------------------------------------------------------------------------------------


class Board(Record, frozen=True):
    """What machine this is. `family` names a file of `devices/`."""

    name: str
    family: str
    module: str | None = None  # part number, e.g. p3767-0005
    soc: str | None = None
    jetpack: str | None = None
    l4t: str | None = None  # the release of Linux for Tegra, e.g. 36.4.4
    os: str | None = None
    arch: str | None = None


class Memory(Record, frozen=True):
    """What may really be used. `limit_bytes` is the lowest cgroup limit along this process's ancestors, if any."""

    total_bytes: int | None = None
    available_bytes: int | None = None
    limit_bytes: int | None = None
    limit_source: str | None = None  # the file the limit was read from
    limit_room_bytes: int | None = None  # the least that any limit along the ancestors leaves after what is used
    limit_enforced: bool | None = None
    swap_bytes: int | None = None
    unified: bool | None = None  # CPU and GPU share one memory
    page_bytes: int | None = None
    shm_bytes: int | None = None  # room in /dev/shm
    zram_bytes: int | None = None
    nvmap_used_bytes: int | None = None
    cuda_total_bytes: int | None = None
    cuda_free_bytes: int | None = None


class Power(Record, frozen=True):
    """What a power sensor says. `total_w` is the unrounded sum of what the sensor reports for this board's total."""

    source: str | None = None
    scope: str | None = None  # module, board-input, soc-rails, pmic-sum, cpu-package, estimate, wall, battery
    total_w: float | None = None
    total_corrected_w: float | None = None
    idle_w: float | None = None
    rails: dict[str, float | None] = {}
    measured: bool = False
    model: str | None = None  # name of the published model, where the figure is not measured
    interval_s: float | None = None  # the sensor's own averaging window
    note: str | None = None


class Modes(Record, frozen=True):
    """Power modes and clocks, as found; edgetune never changes them."""

    current: str | None = None
    available: list[str] = []
    governor: str | None = None
    cpu_hz: list[int] = []  # of each processor, at this moment
    cpu_max_hz: list[int] = []  # what the mode or governor allows
    gpu_hz: int | None = None
    gpu_max_hz: int | None = None
    clocks_locked: bool | None = None  # the GPU's lowest and highest clock are one, as after jetson_clocks
    fan: str | None = None


class BlockCost(Record, frozen=True):
    """One probe of one transformer block: what each part of a step costs on this machine."""

    width: int
    heads: int
    tokens: int
    batch_size: int
    lever: str  # the way the block was run; "eager" is plain autograd
    part: Literal["forward", "pass_gradient", "weight_gradient"]
    seconds: float
    saved_bytes: int | None = None  # kept from forward to backward
    energy_j: float | None = None


class Compute(Record, frozen=True):
    """How fast this machine multiplies and copies, measured with the engine that will train."""

    engine: Engine | None = None
    engine_version: str | None = None
    device: Device | None = None
    threads: int | None = None
    cores: int | None = None
    gemm_flops: dict[str, float | None] = {}  # per second, by precision: fp32, fp16, bf16
    copy_bytes_per_s: float | None = None
    runtime_bytes: int | None = None  # resident memory of the bare process (the contract's baseline)
    block_costs: list[BlockCost] = []
    probe_error: str | None = None


class Profile(Record, frozen=True, tag_field="schema", tag="edgetune/profile/1"):
    """What this machine is and has; answers `edgetune profile`."""

    board: Board
    memory: Memory
    power: Power
    modes: Modes
    throttle: dict[str, int | None]
    compute: Compute
    warnings: list[str]
    edgetune_version: str
    created: str
    advice: list[str] = []  # what the user could change about the machine


# ---------------------------------------------------------------------------------------------------------------------
# plan
# ---------------------------------------------------------------------------------------------------------------------


class Caps(Record, frozen=True):
    """The user's limits. Memory is for the whole process tree, runtime included."""

    memory_bytes: int | None = None
    memory_source: str | None = None  # "--memory", or what the default was computed from
    energy_j: float | None = None
    time_s: float | None = None
    disk_bytes: int | None = None


class BlockPlan(Record, frozen=True):
    """What one block may do: whether its weights may train, and how many patch tokens may leave it."""

    index: int
    trainable: bool
    keep_max_tokens: int
    keep_min_tokens: int


class AlastPlan(Record, frozen=True):
    """Settings of adaptive layer selection; see `edgetune.alast`."""

    mode: Literal["reference", "constrained", "random"]
    initial_budget: float = 0.9
    budget_min: float = 0.5
    budget_max: float = 1.0
    alpha: float = 1e-4
    draw: Literal["softmax", "uniform", "proportional", "top"] = "softmax"
    reduction: Literal["sum", "mean"] = "sum"


class LoraPlan(Record, frozen=True):
    """Low-rank adapters on the attention weights of every block that may train."""

    rank: int = 8
    alpha: float = 8.0


class Recipe(Record, frozen=True):
    """How the weights move: the optimisation settings of a run."""

    learning_rate: float
    weight_decay: float
    warmup_steps: int
    schedule: Literal["cosine", "constant"] = "cosine"
    label_smoothing: float = 0.0
    augment: bool = True  # random resized crop
    flip: bool = True  # and mirror half of the crops; wrong for text and digits
    patience: int | None = None  # evaluations without a better accuracy that end the run
    evaluate_every: int = 1  # epochs between evaluations; the last epoch is always evaluated


class MemoryBill(Record, frozen=True):
    """Where the peak goes, in bytes. `runtime` is the bare process, before any weight is read."""

    runtime: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    workspace: int
    data: int

    @property
    def total(self) -> int:
        """Peak resident memory of the process tree."""
        return sum(getattr(self, name) for name in self.__struct_fields__)


class Predicted(Record, frozen=True):
    """What the plan will cost, as known before any step. `measured` is False: these come from a model."""

    peak_memory_bytes: int
    memory: MemoryBill
    step_s: float | None
    epoch_s: float | None
    total_s: float | None
    epoch_energy_j: float | None
    total_energy_j: float | None
    train_flops_per_image: int
    measured: bool = False
    model: str = "edgetune.plan.cost/1"


class NearestFeasible(Record, frozen=True):
    """For a plan that does not fit: the smallest value of each cap that would, the other caps held."""

    memory_bytes: int | None = None
    energy_j: float | None = None
    time_s: float | None = None


class DataFacts(Record, frozen=True):
    """What the plan knows of the data: counted from folder listings, no image is opened."""

    path: str
    classes: list[str]
    train_images: int
    val_images: int
    split: str  # where validation images come from: "val", "validation", or "split 20 % of train, seed 0"


class FeatureCachePlan(Record, frozen=True):
    """What lies below the lowest trainable block, computed once for each image (and view) and kept on disk."""

    precision: Literal["fp16", "int8"]
    views: int  # augmented views of a training image; epochs take turns with them
    tokens: int  # that enter the lowest trainable block, of a training image
    train_bytes: int  # on disk
    val_bytes: int  # 0: validation images are too seldom needed


class Plan(Record, frozen=True, tag_field="schema", tag="edgetune/plan/1"):
    """What a run will do, at most, and what it will cost; answers `edgetune plan` and drives `edgetune fit`."""

    model: str
    weights: str | None
    image_size: int
    method: str
    engine: Engine
    device: Device
    threads: int
    workers: int
    seed: int
    power_w: float | None  # what the user says the machine draws, where no sensor does
    data: DataFacts
    caps: Caps
    batch_size: int
    micro_batch_size: int
    trainer: Literal["lean", "autograd"]
    precision: Literal["fp32", "bf16"]  # of the matrix products
    frozen_precision: Literal["fp32", "bf16"]  # of those below the lowest trainable block
    frozen_weights: Literal["fp32", "bf16", "int8", "disk"]  # how the weights there are kept
    optimizer: Literal["adamw", "adam", "sgd", "sgd-plain"]
    optimizer_state: Literal["fp32", "int8", "factored"]
    saved_activations: Literal["full", "recompute"]
    saved_precision: Literal["fp32", "bf16", "int8", "int4"]
    feature_cache: FeatureCachePlan | None
    allocator: Literal["fast", "lean"]  # whether freed memory is kept for reuse or goes back to the kernel at once
    blocks: list[BlockPlan]
    k: int
    lowest_trainable_block: int
    embeddings_trainable: bool
    epochs: int
    steps_per_epoch: int
    total_steps: int
    recipe: Recipe
    alast: AlastPlan | None
    lora: LoraPlan | None
    predicted: Predicted
    why: list[str]
    warnings: list[str]
    edgetune_version: str
    created: str


# ---------------------------------------------------------------------------------------------------------------------
# result
# ---------------------------------------------------------------------------------------------------------------------


class Accuracy(Record, frozen=True):
    """Top-1 on the validation images, 0 to 1."""

    best: float | None
    last: float | None
    best_epoch: int | None
    classes: dict[str, float | None]  # per class, of the best checkpoint


class MemoryResult(Record, frozen=True):
    """Predicted beside measured."""

    cap_bytes: int | None
    baseline_bytes: int | None
    predicted_peak_bytes: int
    measured_peak_bytes: int | None
    device_peak_bytes: int | None


class TimeResult(Record, frozen=True):
    """Wall time. `total_s` is process start to exit, over all sessions of a resumed run."""

    total_s: float
    epochs_s: list[float]
    eval_s: float
    save_s: float


class EnergyResult(Record, frozen=True):
    """Joules. `net_j` is above the idle power measured before the run."""

    cap_j: float | None = None
    total_j: float | None = None
    net_j: float | None = None
    epochs_j: list[float | None] = []
    source: str | None = None
    scope: str | None = None
    measured: bool = False


class Work(Record, frozen=True):
    """What was done."""

    images: int
    train_flops: int
    trained_block_steps: int  # blocks that trained, summed over steps
    mean_keep: list[float]  # per block: share of the image's patch tokens that left it, mean over steps
    bytes_written: int


class Result(Record, frozen=True, tag_field="schema", tag="edgetune/result/1"):
    """How a run ended; written by `edgetune fit`."""

    stopped_by: StoppedBy
    accuracy: Accuracy
    memory: MemoryResult
    time: TimeResult
    energy: EnergyResult
    work: Work
    throttled: bool | None
    warnings: list[str]
    edgetune_version: str
    created: str


# ---------------------------------------------------------------------------------------------------------------------
# mistakes
# ---------------------------------------------------------------------------------------------------------------------


class Confusion(Record, frozen=True):
    """How many validation images of class `true` were taken for class `predicted`; indices into `Mistakes.classes`."""

    true: int
    predicted: int
    images: int


class WrongImage(Record, frozen=True):
    """One validation image the model got wrong, and how sure of itself it was."""

    path: str  # as found under the data folder
    true: int
    predicted: int
    confidence: float  # softmax probability of the predicted class
    thumbnail_jpeg: bytes | None = None  # base64 in JSON; 128 px on the longer side is enough


class Mistakes(Record, frozen=True, tag_field="schema", tag="edgetune/mistakes/1"):
    """What the best checkpoint gets wrong on the validation images: `mistakes.json` of a run folder, for its report."""

    images: int
    classes: list[str]
    confusion: list[Confusion]  # cells that are not zero, right answers (true == predicted) included
    most_confident: list[WrongImage]  # surest first, ten at most
    created: str


# ---------------------------------------------------------------------------------------------------------------------
# using a model
# ---------------------------------------------------------------------------------------------------------------------


class Evaluation(Record, frozen=True, tag_field="schema", tag="edgetune/evaluation/1"):
    """How a run's best checkpoint does on labelled images; answers `edgetune evaluate`."""

    checkpoint: str
    model: str
    data: str
    part: str  # of the data: "test", "val", or how a split was drawn
    images: int
    skipped: int  # images that could not be read
    accuracy: float  # top-1, 0 to 1
    loss: float  # mean cross-entropy
    classes: dict[str, float | None]  # accuracy per class; None for a class without images
    confusion: list[Confusion]
    most_confident: list[WrongImage]
    seconds: float
    warnings: list[str]
    edgetune_version: str
    created: str


class Answer(Record, frozen=True):
    """One class an image may show."""

    name: str
    probability: float


class Prediction(Record, frozen=True):
    """What one image shows: the likeliest classes first."""

    path: str
    answers: list[Answer]


class Predictions(Record, frozen=True, tag_field="schema", tag="edgetune/predictions/1"):
    """What images show; answers `edgetune predict`."""

    checkpoint: str
    model: str
    images: list[Prediction]
    warnings: list[str]
    edgetune_version: str
    created: str


class ExportReport(Record, frozen=True, tag_field="schema", tag="edgetune/export/1"):
    """What `edgetune export` wrote, and how far its answers are from torch's on real images; None: not compared."""

    format: str
    path: str
    size_bytes: int
    edgetune_version: str
    created: str
    images: int | None = None  # compared
    images_from: str | None = None
    max_abs_difference: float | None = None  # between logits
    same_answer: float | None = None  # share of the images that keep their class, 0 to 1
    how_to_use: str | None = None

    @property
    def sentence(self) -> str:
        """For a terminal."""
        compared = ""
        if self.images:
            compared = (
                f"; on {self.images} images of {self.images_from} its logits differ from torch's by at most"
                f" {self.max_abs_difference:.2g} and {self.same_answer:.0%} of the answers are the same"
            )
        use = f"; use it with {self.how_to_use}" if self.how_to_use else ""
        return f"written: {self.path} ({self.size_bytes / 1e6:.1f} MB{compared}){use}"


# ---------------------------------------------------------------------------------------------------------------------
# in and out
# ---------------------------------------------------------------------------------------------------------------------

Artifact = TypeVar("Artifact", Profile, Plan, Result, Mistakes)


def now() -> str:
    """The time of day as artifacts record it: UTC, ISO 8601, seconds."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def to_json(record: Record | dict[str, Any]) -> bytes:
    """Indented JSON with a trailing newline."""
    return msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"


def save(record: Record | dict[str, Any], path: Path) -> None:
    """Write an artifact atomically."""
    write_atomically(path, to_json(record))


def load(path: Path, kind: type[Artifact]) -> Artifact:
    """Read an artifact.

    Raises:
        InputError: the file is missing, is not JSON, or is another kind or version of artifact.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except OSError as error:
        raise InputError(f"{path} can't be read ({error.strerror}); check the path.") from None
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise InputError(f"{path} is not a valid {kind.__name__.lower()}: {error}; write it anew.") from None
