"""Memory for what waits for the backward pass, taken once and used again in every step.

Saved tensors come and go among the temporaries of the arithmetic; left to malloc, each would settle in the hole a
temporary left, and the next temporary would need new pages: a ViT-Ti whose step needs 100 MiB grew to 250. So they are
laid side by side in slabs of their own, which the next step writes over. A process then takes the same pages in every
step, and none has to be zeroed again by the kernel. On the CPU a slab is so large that malloc maps it outside its heap
(mallopt(3): blocks of more than 32 MiB always are); only what is written to becomes memory.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_SLAB_BYTES = {"cpu": 64 << 20}
_DEVICE_SLAB_BYTES = 1 << 20  # where memory is taken as it is asked for
_ALIGNMENT = 64  # bytes; a cache line


class Arena:
    """Tensors side by side, all of which `reset` takes back.

    Args:
        device: where the memory lies.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._slabs: list[Tensor] = []
        self._none = torch.empty(0, dtype=torch.uint8, device=device)
        self._slab, self._used = 0, 0

    def reset(self) -> None:
        """Take everything back: what was handed out must not be used any more."""
        self._slab, self._used = 0, 0

    def free(self) -> None:
        """Take everything back, and give the memory back until it is asked for again."""
        self._slabs.clear()
        self.reset()

    def empty(self, shape: tuple[int, ...] | torch.Size, dtype: torch.dtype) -> Tensor:
        """A tensor of any content."""
        size = math.prod(shape) * dtype.itemsize
        if self._slab < len(self._slabs) and self._used and self._used + size > self._slabs[self._slab].numel():
            self._slab, self._used = self._slab + 1, 0
        if self._slab == len(self._slabs):
            self._slabs.append(self._new(size))
        elif self._used + size > self._slabs[self._slab].numel():
            self._slabs[self._slab] = self._none  # freed first: this step has nothing in it, and it is too small
            self._slabs[self._slab] = self._new(size)
        start = self._used
        self._used = -(-(start + size) // _ALIGNMENT) * _ALIGNMENT
        return self._slabs[self._slab][start : start + size].view(dtype).view(shape)

    def _new(self, size: int) -> Tensor:
        slab = _SLAB_BYTES.get(self._device.type, _DEVICE_SLAB_BYTES)
        return torch.empty(max(slab, size), dtype=torch.uint8, device=self._device)

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return sum(slab.numel() for slab in self._slabs)
