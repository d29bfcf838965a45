"""One row of the field's cost table in a process of its own: plain PyTorch and timm, nothing of edgetune's trainer.

    python -m edgetune.bench.field5_row MODEL BATCH ROW

One thread, random input, fp32, the process's own CPU time; memory above the level with the model built and one forward
pass done (it counts what autograd saves, and brings in 15 MB of library code); malloc gives back to the kernel (the
parent sets glibc's thresholds). Prints one JSON object.
"""

from __future__ import annotations

import ctypes
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgetune.measure import PeakMeter, warm_up_torch

_CLASSES, _STEPS, _WARM_STEPS = 100, 5, 2
_LORA_RANK, _SIDE_REDUCTION = 8, 8
_RATE, _MEZO_STEP = 1e-4, 1e-3
_SMALL = 1024  # numbers; smaller saved tensors are kept as they are


class Lora(nn.Module):
    """A frozen linear layer with a trained low-rank correction."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, _LORA_RANK, bias=False)
        self.up = nn.Linear(_LORA_RANK, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.base(x) + self.up(self.down(x))
        return answer


class Side(nn.Module):
    """A ladder beside a frozen backbone: each block's output, projected down, into a small MLP of its own."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        narrow = width // _SIDE_REDUCTION
        self.down = nn.ModuleList(nn.Linear(width, narrow) for _ in range(depth))
        self.mlp = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(narrow), nn.Linear(narrow, 2 * narrow), nn.GELU(), nn.Linear(2 * narrow, narrow))
            for _ in range(depth)
        )
        self.head = nn.Linear(narrow, _CLASSES)

    def forward(self, taken: list[Tensor]) -> Tensor:
        state = torch.zeros(())
        for down, mlp, features in zip(self.down, self.mlp, taken, strict=True):
            state = state + down(features)
            state = state + mlp(state)
        answer: Tensor = self.head(state[:, 0])
        return answer


class Setting:
    """A row's name taken apart: what trains, on which tokens, with which optimizer, and how a step goes."""

    def __init__(self, model_name: str, batch: int, row: str) -> None:
        self.batch, self.row = batch, row
        self.keep = int(row.split("tokens ")[1].split()[-2]) / 100 if "tokens" in row else 1.0
        side = int(row.split(" px")[0].split()[-1]) if " px" in row else 224
        torch.manual_seed(0)
        self.model: Any = timm.create_model(model_name, num_classes=_CLASSES, img_size=side)
        self.depth = len(self.model.blocks)
        self.side: Side | None = None
        self.lowest = 0  # blocks below run without autograd; -1: the embeddings train too
        self._choose()
        self.images = torch.randn(batch, 3, side, side)
        self.labels = torch.randint(0, _CLASSES, (batch,))
        self.features = torch.randn(batch, self.model.embed_dim)
        if "checkpoint" in row:
            self.model.set_grad_checkpointing()
        self.trained = [parameter for parameter in self._parameters() if parameter.requires_grad]
        self.optimizers = self._optimizers()

    def _parameters(self) -> Iterator[nn.Parameter]:
        yield from self.model.parameters()
        if self.side is not None:
            yield from self.side.parameters()

    def _choose(self) -> None:
        """Which parameters train. The classifier always does."""
        row, model = self.row, self.model
        if row.startswith("side network"):
            model.requires_grad_(False)
            self.side, self.lowest = Side(model.embed_dim, self.depth), self.depth
            return
        if row.startswith("last ") or row.startswith("head") or "spread" in row:
            count = int(row.split()[1]) if row.startswith("last ") else 0
            chosen = {0, 4, 7, 11} if "spread" in row else set(range(self.depth - count, self.depth))
            model.requires_grad_(False)
            for index in chosen:
                model.blocks[index].requires_grad_(True)
            if not row.startswith("head"):
                model.norm.requires_grad_(True)
            self.lowest = min(chosen, default=self.depth)
        elif row.startswith("LoRA"):
            model.requires_grad_(False)
            for block in model.blocks:
                block.attn.qkv, block.attn.proj = Lora(block.attn.qkv), Lora(block.attn.proj)
        else:
            self.lowest = -1
            parts = {"biases": "bias", "norms": "norm", "attention": ".attn."}
            wanted = next((part for word, part in parts.items() if row.startswith(word)), "")
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(wanted in name)
        model.head.requires_grad_(True)

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        def made(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
            if "SGD" in self.row:
                return torch.optim.SGD(parameters, lr=_RATE)
            return torch.optim.AdamW(parameters, lr=_RATE)

        if "backward" not in self.row:
            return [made(self.trained)]
        each = {parameter: made([parameter]) for parameter in self.trained}

        def step(parameter: nn.Parameter) -> None:
            each[parameter].step()
            parameter.grad = None

        for parameter in self.trained:
            parameter.register_post_accumulate_grad_hook(step)
        return []

    def logits(self, images: Tensor) -> Tensor:
        """The forward pass of a row."""
        model = self.model
        if "checkpoint" in self.row:
            whole: Tensor = model(images)
            return whole
        taken: list[Tensor] = []
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.lowest < 0):
            x = model.norm_pre(model._pos_embed(model.patch_embed(images)))
        wants_grad = torch.is_grad_enabled()
        for index, block in enumerate(model.blocks):
            with torch.set_grad_enabled(wants_grad and index >= self.lowest):
                x = block(x)
                if index == 0 and self.keep < 1:
                    patches = x.shape[1] - 1
                    kept = torch.randperm(patches)[: round(self.keep * patches)].sort().values + 1
                    x = torch.cat([x[:, :1], x[:, kept]], 1)
            if self.side is not None:
                taken.append(x)
        if self.side is not None:
            return self.side(taken)  # type: ignore[no-any-return]
        answer: Tensor = model.forward_head(model.norm(x))
        return answer

    def loss(self, part: slice = slice(None)) -> Tensor:
        """Of the batch or a part of it, before the backward pass."""
        if "cached" in self.row:
            return F.cross_entropy(self.model.head(self.features[part]), self.labels[part])
        autocast: AbstractContextManager[Any] = nullcontext()
        if "bf16" in self.row:
            autocast = torch.autocast("cpu", dtype=torch.bfloat16)
        with autocast, _in_eight_bits(self) if "int8" in self.row else nullcontext():
            return F.cross_entropy(self.logits(self.images[part]).float(), self.labels[part])

    def step(self) -> None:
        """One optimizer step on the batch."""
        if self.row.startswith("MeZO"):
            self._two_points()
            return
        parts = self.batch
        if self.row.startswith("micro-batch"):
            parts = int(self.row.split()[1])
        for start in range(0, self.batch, parts):
            (self.loss(slice(start, start + parts)) * (parts / self.batch)).backward()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()

    @torch.no_grad()
    def _two_points(self) -> None:
        """A zeroth-order step (MeZO, arXiv 2305.17333): the loss on both sides along one direction, drawn anew."""

        def move(by: float) -> None:
            generator = torch.Generator().manual_seed(1)
            for parameter in self.trained:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=by)

        move(_MEZO_STEP)
        above = self.loss()
        move(-2 * _MEZO_STEP)
        slope = float(above - self.loss()) / (2 * _MEZO_STEP)
        move(_MEZO_STEP - _RATE * slope)


@contextmanager
def _in_eight_bits(setting: Setting) -> Iterator[None]:
    """Saved tensors in 8 bits, a scale for each row; weights, and what is small, as they are."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in setting.model.parameters()}

    def pack(tensor: Tensor) -> Any:
        if not tensor.is_floating_point() or tensor.numel() < _SMALL or tensor.untyped_storage().data_ptr() in weights:
            return tensor.detach()
        scale = tensor.detach().abs().amax(-1, keepdim=True).clamp_(min=1e-12) / 127
        return (tensor.detach() / scale).round_().to(torch.int8), scale

    def unpack(packed: Any) -> Tensor:
        return packed if isinstance(packed, Tensor) else packed[0] * packed[1]

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield


def saved_bytes(setting: Setting) -> int:
    """Bytes that autograd keeps for the backward pass of a batch (of a micro-batch), weights left out."""
    if setting.row.startswith("MeZO"):
        return 0
    weights = {parameter.untyped_storage().data_ptr() for parameter in setting._parameters()}
    seen: dict[int, int] = {}
    in_bits = "int8" in setting.row

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            large = in_bits and tensor.is_floating_point() and tensor.numel() >= _SMALL
            size = tensor.numel() + 4 * tensor.numel() // tensor.shape[-1] if large else storage.nbytes()
            seen[storage.data_ptr()] = size
        kept.append(tensor.detach())
        return kept[-1]

    kept: list[Tensor] = []  # so that no address is used twice
    size = int(setting.row.split()[1]) if setting.row.startswith("micro-batch") else setting.batch
    row, setting.row = setting.row, setting.row.replace("int8", "eight bits")
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = setting.loss(slice(0, size))
    finally:
        setting.row = row
    del loss
    return sum(seen.values())


def _trim() -> None:
    """Give what glibc has kept back to the kernel."""
    trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def main(model: str, batch: str, row: str) -> None:
    """Measure one row."""
    warm_up_torch(1)
    setting = Setting(model, int(batch), row)
    setting.model.train()
    saved = saved_bytes(setting)  # first: a forward pass brings in library code, which is no row's own
    _trim()
    memory = PeakMeter.start()
    seconds = []
    for step in range(_WARM_STEPS + _STEPS):
        began = time.process_time()
        setting.step()
        if step >= _WARM_STEPS:
            seconds.append(time.process_time() - began)
    memory.stop()
    peak, baseline = memory.peak_bytes(), memory.baseline_bytes
    print(
        json.dumps(
            {
                "saved_bytes": saved,
                "peak_bytes": None if peak is None or baseline is None else peak - baseline,
                "image_s": statistics.median(seconds) / int(batch),
                "step_s": seconds,
                "warnings": memory.warnings,
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
