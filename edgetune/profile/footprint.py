"""What the first step brings into memory besides its tensors: code, kernels, what a library keeps for them.

A processor decides which kernels a library takes, so this differs from machine to machine: products in bfloat16 cost
40 MiB where there are instructions for them, 6 MiB where there are none. Run in the child only, before other probes use
the same code. The block is so small that its own tensors hardly count.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator

import torch

from edgetune.measure.memory import PeakMeter
from edgetune.model.spec import ViTSpec
from edgetune.profile.block import LeanBlock, library_of_lean_trainer
from edgetune.profile.probes import Line

_SPEC = ViTSpec(name="probe", width=192, depth=1, heads=3, patch_size=1, image_size=1)
_TOKENS, _TIMES = 17, 2


def footprint_lines() -> Iterator[Line]:
    """Bytes by the way a block is run (`Compute.first_use_bytes`), as lines for the parent; none without procfs."""
    meter = PeakMeter()
    exact, short = (LeanBlock(_SPEC, _TOKENS, 1, "cpu", compute) for compute in (None, torch.bfloat16))

    bare = meter.current_bytes()

    def line(lever: str) -> Line:
        """What there is more of than in the bare process."""
        gc.collect()
        now = meter.current_bytes()
        return {"first_use": {} if now is None or bare is None else {lever: max(0, now - bare)}}

    with torch.no_grad():
        try:  # first: what runs in bfloat16 alone needs nothing of the code for fp32
            for _ in range(_TIMES):
                short.forward()
            yield line("lean-bf16-forward")
            for _ in range(_TIMES):
                exact.both(trained=True)  # by oneDNN, like all products of a run that has some in bfloat16
            yield line("lean-bf16-frozen")
            for _ in range(_TIMES):
                short.both(trained=True)  # with what the exact one brought in: most of it is the same library's
            yield line("lean-bf16")
        except RuntimeError:  # this precision has no kernel here
            with library_of_lean_trainer("cpu", short_floats=False):
                for _ in range(_TIMES):
                    exact.both(trained=True)
            yield line("lean")
