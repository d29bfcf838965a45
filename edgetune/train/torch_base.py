"""What the two engines over torch have in common: evaluation, taking up a state, memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional as F

from edgetune.data.loader import Batch
from edgetune.errors import InputError
from edgetune.model.spec import ViTSpec
from edgetune.schema import Plan
from edgetune.train.controlled import ControlledEngine
from edgetune.train.engine import Evaluation
from edgetune.train.scarcity import memory_errors


class CudaMemory:
    """What torch's CUDA allocator holds, the context excluded, as an `edgetune.measure.memory.DeviceMemory`.

    Asking begins no context: the bare process of a run would have it.

    Args:
        unified: the GPU has its memory from the machine's.
    """

    def __init__(self, *, unified: bool) -> None:
        self.unified = unified

    def reserved_bytes(self) -> int:
        """See `DeviceMemory.reserved_bytes`."""
        return torch.cuda.memory_reserved() if torch.cuda.is_initialized() else 0

    def peak_bytes(self) -> int:
        """See `DeviceMemory.peak_bytes`."""
        return torch.cuda.max_memory_reserved() if torch.cuda.is_initialized() else 0

    def reset_peak(self) -> None:
        """See `DeviceMemory.reset_peak`."""
        if torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats()


class TorchBase(ControlledEngine, ABC):
    """See the module, and `edgetune.train.engine.Engine` for what each call promises.

    Args:
        plan: the constraints.
        spec: the model at the plan's image size and number of classes.
    """

    def __init__(self, plan: Plan, spec: ViTSpec) -> None:
        super().__init__(plan, spec)
        self.device = torch.device(plan.device)

    def _tensors(self, *arrays: NDArray[Any]) -> Iterator[Tensor]:
        return (torch.from_numpy(array).to(self.device, non_blocking=True) for array in arrays)

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
            logits = self._logits(images, micro_batch_size).float()
            loss += float(F.cross_entropy(logits, expected, reduction="sum"))
            confidence, answer = logits.softmax(1).max(1)
            indices += [] if batch.indices is None else batch.indices.tolist()
            labels += expected.tolist()
            predictions += answer.tolist()
            confidences += confidence.tolist()
        return Evaluation(loss / max(1, len(labels)), indices, labels, predictions, confidences)

    @abstractmethod
    def _logits(self, images: Tensor, micro_batch_size: int) -> Tensor:
        """Logits (B, classes) of a batch as its source gave it, all tokens kept, so many images at a time."""

    def load_state(self, base: Path, path: Path) -> dict[str, Any]:
        """See `Engine.load_state`."""
        try:
            with memory_errors():
                kept = self._take_up(base, path)
        except (SafetensorError, OSError, KeyError, ValueError, RuntimeError, TypeError) as error:
            raise InputError(f"{path.parent} does not hold this run's state ({error}); start anew.") from error
        if self.controller:
            self.controller.load_state_dict(kept["controller"])
        progress: dict[str, Any] = kept["progress"]
        return progress

    @abstractmethod
    def _take_up(self, base: Path, path: Path) -> dict[str, Any]:
        """Read weights and the optimizer's state; returns what the header of `path` keeps besides."""

    def device_room_bytes(self) -> int | None:
        """See `Engine.device_room_bytes`: what is free, and what the allocator holds without using it."""
        if self.device.type != "cuda":
            return None
        free_bytes, _ = torch.cuda.mem_get_info()
        return int(free_bytes + torch.cuda.memory_reserved() - torch.cuda.memory_allocated())

    def device_peak_bytes(self) -> int | None:
        """See `Engine.device_peak_bytes`."""
        return torch.cuda.max_memory_reserved() if self.device.type == "cuda" else None
