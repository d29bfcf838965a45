"""The torch engine: eager autograd over a plain ViT, under the constraints of a plan."""

from __future__ import annotations

import json
import math
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F

from edgetune.data.loader import Batch
from edgetune.errors import InputError
from edgetune.measure import warm_up_torch
from edgetune.model.header import WeightsMetadata
from edgetune.model.lora import add_lora, lora_parameters
from edgetune.model.registry import find_spec
from edgetune.model.vit import Block, VisionTransformer
from edgetune.model.weights import build_model, save_weights
from edgetune.optim.fused import Optimizer
from edgetune.schema import Plan
from edgetune.train.engine import StepReport
from edgetune.train.forward import training_forward
from edgetune.train.scarcity import OutOfMemoryError, memory_errors
from edgetune.train.torch_base import TorchBase

_OPTIMIZER_PREFIX, _PARAMETER_PREFIX = "optimizer/", "parameter/"


class TorchEngine(TorchBase):
    """A VisionTransformer in training; see `edgetune.train.engine.Engine` for what each call promises.

    Args:
        plan: the constraints.
        model: the transformer with its weights loaded, on the CPU.
    """

    base_s: float | None = None

    def __init__(self, plan: Plan, model: VisionTransformer) -> None:
        super().__init__(plan, model.spec)
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
        self._all_blocks = tuple(trainable_blocks)

    def _autocast(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.plan.precision == "fp32" else torch.autocast(self.plan.device, torch.bfloat16)

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
        return self._report(batch, loss, trained, kept)

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

    def _logits(self, images: Tensor, micro_batch_size: int) -> Tensor:
        """See `TorchBase`."""
        with self._autocast():
            return torch.cat([self.model(part) for part in images.split(micro_batch_size)])

    def rest(self) -> None:
        """See `Engine.rest`: gradients are gone after each step as it is."""
        self.optimizer.zero_grad()

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


def start(plan: Plan) -> None:
    """Set torch up for a run, so that what the bare process takes is there before memory is measured.

    Raises:
        InputError: the plan is for a GPU that torch can't use.
    """
    if plan.device == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "--device cuda can't be used: this torch finds no GPU; use --device cpu, or torch for this board."
        )
    # In fp32 torch asks oneDNN, where MKL multiplies, for convolutions and GELUs alone. The lean trainer has no
    # convolution, and torch's own GELU is as fast; 7 MiB of oneDNN's code then never come into memory.
    exact = "bf16" not in (plan.precision, plan.frozen_precision)
    without = plan.trainer == "lean" and plan.device == "cpu" and exact and torch.backends.mkl.is_available()
    torch.backends.mkldnn.set_flags(not without)
    warm_up_torch(plan.threads, plan.device)
    torch.manual_seed(plan.seed)
