"""The plan: what a run will do, at most, and what it will cost."""

from __future__ import annotations

from typing import Literal

from edgetune.schema.base import Device, Engine, Record


class Caps(Record, frozen=True):
    """The user's limits. Memory is for the whole process tree, runtime included."""

    memory_bytes: int | None = None
    memory_source: str | None = None  # "--memory", or what the default was computed from
    energy_j: float | None = None
    time_s: float | None = None
    disk_bytes: int | None = None


class BlockPlan(Record, frozen=True):
    """What one block may do: whether its weights may train, how many patch tokens may leave it, what it remembers."""

    index: int
    trainable: bool
    keep_max_tokens: int
    keep_min_tokens: int
    recomputed: bool = False  # run again in the backward pass instead of being remembered


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
    evaluate_steps: int | None = None  # steps between evaluations that are only recorded and choose nothing


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


class StepPart(Record, frozen=True):
    """One row of what an optimizer step takes, predicted: a block, or what happens besides, under `forward_s`."""

    name: str
    forward_s: float
    pass_gradient_s: float  # what runs again for it included
    weight_gradient_s: float
    saved_bytes: (
        int  # that wait for the backward pass, at the most tokens; 0 under autograd, whose bill is of the whole
    )
    energy_j: float | None  # None without watts


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
    model: str = "edgetune.plan.cost/5"
    first_epoch_s: float | None = None  # the one that fills a feature cache; `epoch_s` is the mean over all
    peak_memory_most_bytes: int | None = None  # with what nobody is sure of; this is what a cap is held against
    step_parts: list[StepPart] = []  # empty where nothing was timed
    time_factor: float | None = None  # that times and energies may be off by, either way


class Calibrated(Record, frozen=True):
    """What the first steps of the run itself say, beside what was predicted; nothing here was known to the plan."""

    after_steps: int
    step_s: float
    epoch_s: float
    total_s: float
    total_energy_j: float | None
    baseline_bytes: int | None = None  # the bare process, as measured
    peak_memory_bytes: int | None = None  # of the process tree until then: later an evaluation may take more


class Alternative(Record, frozen=True):
    """A plan that no other one beats in memory, time and learning at once; a prediction, like all of a plan."""

    trained_blocks: int
    k: int
    token_share: float  # of the patches, at most, that leave a block of the trained part
    saved_precision: Literal["fp32", "bf16", "int8", "int4"]
    saved_activations: Literal["full", "recompute"]
    micro_batch_size: int
    allocator: Literal["fast", "lean"]
    peak_memory_bytes: int
    total_s: float | None
    total_energy_j: float | None
    work_per_epoch: float  # seconds, joules or, where nothing was timed, FLOPs of an image: comparable within a plan
    learning: float  # expected, relative to the plan that was chosen
    within_caps: bool
    chosen: bool
    recomputed_blocks: int = 0  # run again in the backward pass


class NearestFeasible(Record, frozen=True):
    """For a plan that does not fit: the smallest value of each cap that would, the other caps held."""

    memory_bytes: int | None = None
    energy_j: float | None = None
    time_s: float | None = None
    too_small: list[Literal["memory_bytes", "energy_j", "time_s"]] = []  # caps that fail whatever the others are


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
    part_tokens: int | None  # of the images that pass a block together, about, where they were given
    feature_cache: FeatureCachePlan | None
    allocator: Literal["fast", "lean"]  # whether freed memory is kept for reuse or goes back to the kernel at once
    blocks: list[BlockPlan]
    k: int
    lowest_trainable_block: int
    embeddings_trainable: bool
    epochs: int
    steps_per_epoch: int
    total_steps: int  # as many as the caps on time and energy are expected to allow: the last epoch may be cut short
    wanted_epochs: int  # of which `epochs` are expected to fit those caps; a run that is faster goes on towards them
    recipe: Recipe
    alast: AlastPlan | None
    lora: LoraPlan | None
    predicted: Predicted
    why: list[str]
    warnings: list[str]
    edgetune_version: str
    created: str
    calibrated: Calibrated | None = None  # in a run folder, once the run has taken a few steps
    recompute_share: float = 1.0  # where blocks are run again: of those that keep something, the lowest
    alternatives: list[Alternative] = []  # from the least memory to the most, the chosen one among them
