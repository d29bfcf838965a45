"""The torch engine: eager autograd over a plain ViT, under the constraints of a plan."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import functional as F

from edgetune.alast import Controller
from edgetune.data.loader import Batch
from edgetune.errors import InputError
from edgetune.measure import warm_up_torch
from edgetune.model.header import WeightsMetadata
from edgetune.model.lora import add_lora, lora_parameters
from edgetune.model.registry import find_spec
from edgetune.model.vit import Block, VisionTransformer
from edgetune.model.weights import build_model, save_weights
from edgetune.plan.cost import step_flops
from edgetune.schema import Plan
from edgetune.train.engine import Evaluation, OutOfMemoryError, StepReport
from edgetune.train.forward import training_forward
from edgetune.train.optimizer import Optimizer

_OPTIMIZER_PREFIX, _PARAMETER_PREFIX = "optimizer/", "parameter/"
# how the C library, CUDA and Tegra's NvMap say that memory has run out
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "NvMapMem", "NVML_SUCCESS == r")


class TorchEngine:
    """A VisionTransformer in training; see `edgetune.train.engine.Engine` for what each call promises.

    Args:
        plan: the constraints.
        model: the transformer with its weights loaded, on the CPU.
    """

    def __init__(self, plan: Plan, model: VisionTransformer) -> None:
        self.plan = plan
        self.spec = model.spec
        self.device = torch.device(plan.device)
        trainable_blocks = [block.index for block in plan.blocks if block.trainable]
        if plan.lora is not None:
            add_lora(model, plan.lora.rank, plan.lora.alpha, trainable_blocks, seed=plan.seed)
        self.model = model.to(self.device)
        # what of a block learns when it trains: all of it, or its adapters alone
        self._by_block = [
            lora_parameters(block) if plan.lora else list(block.parameters())
            for block in cast(list[Block], model.blocks)
        ]
        always = {"norm", "fc_norm", *model.spec.classifiers}
        if plan.embeddings_trainable:
            always |= {"cls_token", "dist_token", "reg_token", "pos_embed", "patch_embed"}
        adaptable = {id(parameter) for index in trainable_blocks for parameter in self._by_block[index]}
        self._trainable = []
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.split(".")[0] in always)
            if parameter.requires_grad or id(parameter) in adaptable:
                self._trainable.append((name, parameter))
        if plan.optimizer == "sgd-plain":
            raise InputError("optimizer sgd-plain needs the lean trainer; plan anew with --lever trainer=lean.")
        self.optimizer = Optimizer(plan.optimizer, self._trainable, plan.recipe.weight_decay)
        self.controller = (
            Controller.from_plan(
                plan.alast,
                plan.blocks,
                plan.k,
                prefix_tokens=self.spec.prefix,
                class_token=self.spec.class_token,
                seed=plan.seed,
            )
            if plan.alast
            else None
        )
        self._all_blocks = tuple(trainable_blocks)

    def _autocast(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.plan.precision == "fp32" else torch.autocast(self.plan.device, torch.bfloat16)

    def _tensors(self, *arrays: NDArray[Any]) -> Iterator[Tensor]:
        return (torch.from_numpy(array).to(self.device, non_blocking=True) for array in arrays)

    def train_step(self, batch: Batch, learning_rate: float, micro_batch_size: int) -> StepReport:
        """See `Engine.train_step`."""
        before = self.controller.state_dict() if self.controller else None
        trained = self.controller.draw() if self.controller else self._all_blocks
        for index in self._all_blocks:
            for parameter in self._by_block[index]:
                parameter.requires_grad_(index in trained)
        self.optimizer.zero_grad()
        try:
            with memory_errors():
                loss, kept = self._accumulate(batch, min(trained, default=self.spec.depth), micro_batch_size)
                self.optimizer.prepare()
        except OutOfMemoryError:
            self.optimizer.zero_grad()
            if self.controller and before:
                self.controller.load_state_dict(before)
            raise
        if math.isfinite(loss):
            self.optimizer.step(learning_rate)
        self.optimizer.zero_grad()
        return StepReport(
            loss=loss,
            trained=trained,
            kept=kept,
            budgets=list(self.controller.budgets) if self.controller else None,
            flops=len(batch.labels) * step_flops(self.spec, self.plan, trained, kept),
        )

    def _accumulate(self, batch: Batch, lowest: int, micro_batch_size: int) -> tuple[float, list[float]]:
        """Gradients of the batch's mean loss, and the patch tokens that left each block (mean over images)."""
        size = len(batch.labels)
        total, kept = 0.0, [0.0] * self.spec.depth
        for start in range(0, size, micro_batch_size):
            part = slice(start, start + micro_batch_size)
            images, labels = self._tensors(batch.images[part], batch.labels[part])
            share = len(labels) / size
            with self._autocast():
                logits = training_forward(
                    self.model,
                    images,
                    lowest_trained=lowest,
                    embeddings_trained=self.plan.embeddings_trainable,
                    controller=self.controller,
                    recompute=self.plan.saved_activations == "recompute",
                )
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.plan.recipe.label_smoothing) * share
            loss.backward()
            total += loss.item()
            tokens = self.controller.kept if self.controller else (self.spec.patches,) * self.spec.depth
            kept = [sum_ + share * (count or 0) for sum_, count in zip(kept, tokens, strict=True)]
        return total, kept

    @torch.no_grad()
    def evaluate(
        self, batches: Iterable[Batch], micro_batch_size: int, stop: Callable[[], bool] = lambda: False
    ) -> Evaluation | None:
        """See `Engine.evaluate`."""
        with memory_errors():
            return self._evaluate(batches, micro_batch_size, stop)

    def _evaluate(self, batches: Iterable[Batch], micro_batch_size: int, stop: Callable[[], bool]) -> Evaluation | None:
        loss = 0.0
        indices: list[int] = []
        labels: list[int] = []
        predictions: list[int] = []
        confidences: list[float] = []
        for batch in batches:
            if stop():
                return None
            images, expected = self._tensors(batch.images, batch.labels)
            with self._autocast():
                logits = torch.cat([self.model(part) for part in images.split(micro_batch_size)])
            loss += float(F.cross_entropy(logits.float(), expected, reduction="sum"))
            confidence, answer = logits.float().softmax(1).max(1)
            indices += [] if batch.indices is None else batch.indices.tolist()
            labels += expected.tolist()
            predictions += answer.tolist()
            confidences += confidence.tolist()
        return Evaluation(loss / max(1, len(labels)), indices, labels, predictions, confidences)

    def save_weights(self, path: Path, accuracy: float | None) -> int:
        """See `Engine.save_weights`."""
        metadata = WeightsMetadata.of(self.spec, self.plan.data.classes, val_accuracy=json.dumps(accuracy))
        save_weights(path, self.model, metadata)
        return path.stat().st_size

    def save_base(self, path: Path) -> int:
        """See `Engine.save_base`."""
        trainable = {name for name, _ in self._trainable}
        frozen = {name: value for name, value in self.model.state_dict().items() if name not in trainable}
        save_weights(path, frozen, {"edgetune": "what never trains"})
        return path.stat().st_size

    def save_state(self, path: Path, progress: dict[str, Any]) -> int:
        """See `Engine.save_state`."""
        tensors = {_PARAMETER_PREFIX + name: parameter.detach() for name, parameter in self._trainable}
        for name, state in self.optimizer.state.items():
            tensors |= {f"{_OPTIMIZER_PREFIX}{key}/{name}": value for key, value in state.items()}
        kept = {
            "progress": progress,
            "controller": self.controller.state_dict() if self.controller else None,
        }
        save_weights(path, tensors, {"edgetune": kept})
        return path.stat().st_size

    def load_state(self, base: Path, path: Path) -> dict[str, Any]:
        """See `Engine.load_state`."""
        try:
            kept = self._take_up(base, path)
        except (SafetensorError, OSError, KeyError, ValueError, RuntimeError, TypeError) as error:
            raise InputError(f"{path.parent} does not hold this run's state ({error}); start anew.") from error
        if self.controller:
            self.controller.load_state_dict(kept["controller"])
        progress: dict[str, Any] = kept["progress"]
        return progress

    def _take_up(self, base: Path, path: Path) -> dict[str, Any]:
        values = self.model.state_dict()
        with safe_open(base, "pt") as stored, torch.no_grad():
            for name in stored.keys():  # noqa: SIM118 - safe_open is no mapping
                values[name].copy_(stored.get_tensor(name))
        with safe_open(path, "pt") as stored, torch.no_grad():
            names = set(stored.keys())
            kept: dict[str, Any] = json.loads(stored.metadata()["edgetune"])
            for name, parameter in self._trainable:
                parameter.copy_(stored.get_tensor(_PARAMETER_PREFIX + name))
                state = {
                    key: stored.get_tensor(f"{_OPTIMIZER_PREFIX}{key}/{name}").to(self.device)
                    for key in ("step", "exp_avg", "exp_avg_sq", "momentum_buffer")
                    if f"{_OPTIMIZER_PREFIX}{key}/{name}" in names
                }
                if state:
                    self.optimizer.state[name] = state
        return kept

    def device_peak_bytes(self) -> int | None:
        """See `Engine.device_peak_bytes`."""
        return torch.cuda.max_memory_reserved() if self.device.type == "cuda" else None


def load_model(plan: Plan, *, blank: bool) -> VisionTransformer:
    """The plan's model with its weights; `blank` leaves them out, for a state that holds every one of them.

    Raises:
        InputError: the weights can't be used.
    """
    spec = find_spec(plan.model).at(plan.image_size, len(plan.data.classes))
    if blank:
        return VisionTransformer(spec)
    weights = Path(plan.weights) if plan.weights else None
    model, _ = build_model(spec, weights, class_names=plan.data.classes, seed=plan.seed)
    return model


@contextmanager
def memory_errors() -> Iterator[None]:
    """Whatever says that memory has run out becomes an `OutOfMemoryError`.

    Raises:
        OutOfMemoryError: see above.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not any(words in str(error) for words in _OUT_OF_MEMORY):
            raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        raise OutOfMemoryError(str(error).splitlines()[0] if str(error) else "malloc") from error


def start(plan: Plan) -> None:
    """Set torch up for a run, so that what the bare process takes is there before memory is measured.

    Raises:
        InputError: the plan is for a GPU that torch can't use.
    """
    if plan.device == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "--device cuda can't be used: this torch finds no GPU; use --device cpu, or torch for this board."
        )
    warm_up_torch(plan.threads, plan.device)
    torch.manual_seed(plan.seed)
