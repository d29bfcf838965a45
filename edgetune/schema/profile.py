"""The profile: what a machine is and has, and how fast it is."""

from __future__ import annotations

from typing import Literal

from edgetune.schema.base import Device, Engine, Record


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
    # the way the block was run: "eager" is plain autograd, "lean" and "lean-bf16" the lean trainer's; "eager-tight" and
    # "lean-tight" are the same where a plan has malloc keep nothing (`allocator` lean)
    lever: str
    part: Literal["forward", "pass_gradient", "weight_gradient"]
    seconds: float
    saved_bytes: int | None = None  # kept from forward to backward
    energy_j: float | None = None


class TensorCost(Record, frozen=True):
    """One probe of what the trainers do with tensors besides a block's arithmetic."""

    # "keep": put away in a saved precision and read back; "update": of a block's weights; "ready": frozen weights
    # brought from the precision they are stored in to that of the arithmetic
    operation: Literal["keep", "update", "ready"]
    lever: str  # "int8"; trainer, rule and state, "lean/adamw/int8"; from and to, "int8/fp32"
    numbers: int
    seconds: float


class Compute(Record, frozen=True):
    """How fast this machine multiplies and copies, measured with the engine that will train."""

    engine: Engine | None = None
    engine_version: str | None = None
    device: Device | None = None
    threads: int | None = None
    cores: int | None = None
    gemm_flops: dict[str, float | None] = {}  # per second, by precision: fp32, fp16, bf16
    copy_bytes_per_s: float | None = None
    decode_bytes_per_s: float | None = None  # of image files
    render_values_per_s: float | None = None  # of what a model gets of them; three to a pixel
    write_bytes_per_s: float | None = None  # brought to the disk of the working folder
    read_bytes_per_s: float | None = None  # of what the system still has of a file in memory
    fresh_bytes_per_s: float | None = None  # of memory written to for the first time
    import_s: float | None = None  # of the engine
    busy_w: float | None = None  # mean of what the power source said while the probes ran; a model's where it is one
    runtime_bytes: int | None = None  # resident memory of the bare process (the contract's baseline)
    # that a first step brings in besides its tensors, by the way blocks are run: "lean-bf16" with all products in bf16,
    # "lean-bf16-forward" where besides none trains, "lean-bf16-frozen" where those of frozen blocks alone are; "lean"
    # with none, measured only where there is no bf16
    first_use_bytes: dict[str, int] = {}
    block_costs: list[BlockCost] = []
    tensor_costs: list[TensorCost] = []
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
