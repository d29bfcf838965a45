"""What a user may ask of `plan` and `fit`: one record, filled from a config file and from flags. Flags win."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from edgetune.errors import InputError
from edgetune.units import parse_duration, parse_energy, parse_power, parse_size

if TYPE_CHECKING:
    from edgetune.schema import Plan

_QUANTITIES = ("memory_bytes", "energy_j", "time_s", "disk_bytes")  # planner arguments that carry their unit


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of a run, as written: sizes and durations still carry their units. `None` leaves the choice to the plan.

    Field names are the flags' names with underscores; a config file may use dashes.
    """

    data: str | None = None
    model: str | None = None
    weights: str | None = None
    profile: str | None = None
    memory: str | int | float | None = None
    energy: str | float | None = None
    time: str | float | None = None
    disk: str | int | float | None = None
    power: str | float | None = None
    method: str | None = None
    engine: str | None = None
    device: str | None = None
    epochs: int | None = None
    batch_size: int | None = None
    image_size: int | None = None
    lr: float | None = None
    patience: int | None = None
    evaluate_every: int | None = None
    evaluate_steps: int | None = None
    augment: bool | None = None
    flip: bool | None = None
    threads: int | None = None
    workers: int | None = None
    lever: tuple[str, ...] | None = None
    seed: int | None = None

    def planner_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `edgetune.plan.make_plan`, quantities as numbers.

        Raises:
            InputError: a quantity is not understood, or DATA or --model is missing.
        """
        if self.data is None:
            raise InputError("DATA is missing: give the image folder as the first argument.")
        if self.model is None:
            raise InputError("--model is missing: `edgetune models` lists the names; vit_nano_patch8_64 is bundled.")
        given: dict[str, Any] = {
            "data": Path(self.data),
            "model": self.model,
            "weights": None if self.weights is None else Path(self.weights),
            "memory_bytes": None if self.memory is None else parse_size(str(self.memory)),
            "energy_j": None if self.energy is None else parse_energy(str(self.energy)),
            "time_s": None if self.time is None else parse_duration(str(self.time)),
            "disk_bytes": None if self.disk is None else parse_size(str(self.disk), "--disk", zero=True),
            "power_w": self.power_w,
        }
        for name in ("method", "engine", "device", "epochs", "batch_size", "image_size", "lr", "patience", "threads"):
            given[name] = getattr(self, name)
        given |= {
            "evaluate_every": self.evaluate_every,
            "evaluate_steps": self.evaluate_steps,
            "workers": self.workers,
            "augment": self.augment,
            "flip": self.flip,
            "levers": self.lever or None,
            "seed": self.seed,
        }
        return {name: value for name, value in given.items() if value is not None}

    def conflicts(self, plan: Plan) -> list[str]:
        """Names of the options that were given and say something else than `plan`."""
        recipe, caps = plan.recipe, plan.caps
        arguments = self.planner_arguments() if self.model else replace(self, model=plan.model).planner_arguments()
        planned: dict[str, Any] = {
            "weights": None if plan.weights is None else Path(plan.weights),
            "memory_bytes": caps.memory_bytes,
            "energy_j": caps.energy_j,
            "time_s": caps.time_s,
            "disk_bytes": caps.disk_bytes,
            "lr": recipe.learning_rate,
            "patience": recipe.patience,
            "evaluate_every": recipe.evaluate_every,
            "evaluate_steps": recipe.evaluate_steps,
            "augment": recipe.augment,
            "flip": recipe.flip,
        }
        planned["epochs"] = plan.wanted_epochs
        for name in ("model", "method", "device", "batch_size", "image_size", "threads", "workers", "seed"):
            planned[name] = getattr(plan, name)
        planned["engine"] = "auto" if arguments.get("engine") == "auto" else plan.engine
        if "weights" in arguments:
            arguments["weights"] = arguments["weights"].absolute()
        different = [
            name.rsplit("_", 1)[0] if name in _QUANTITIES else name
            for name, value in arguments.items()
            if name in planned and planned[name] != value
        ]
        # a plan tells what its levers led to, not which of them were set
        return different + (["lever"] if self.lever else [])

    @property
    def power_w(self) -> float | None:
        """What the user says the machine draws."""
        return None if self.power is None else parse_power(str(self.power))


def merge_options(config: Path | None, flags: dict[str, Any]) -> Options:
    """Options from a TOML or JSON config file, overruled by the flags that were given.

    Raises:
        InputError: the file can't be read, or a name or type in it is wrong.
    """
    values: dict[str, Any] = {}
    if config is not None:
        try:
            raw = config.read_bytes()
            decoded = msgspec.toml.decode(raw) if config.suffix == ".toml" else msgspec.json.decode(raw)
            values = {str(name).replace("-", "_"): value for name, value in decoded.items() if name != "schema"}
        except OSError as error:
            raise InputError(f"--config {config} can't be read ({error.strerror}); check the path.") from None
        except (msgspec.DecodeError, AttributeError) as error:
            raise InputError(f"--config {config} is not a TOML or JSON table ({error}); correct it.") from None
    values |= {name: value for name, value in flags.items() if value is not None}
    try:
        return msgspec.convert(values, Options)
    except msgspec.ValidationError as error:
        source = f"--config {config}" if config else "the options"
        raise InputError(f"{source}: {error}; `edgetune fit --help` lists the names.") from None
