"""What every training process is before it reads a weight: the moment the contract calls the baseline.

The trainer and the profiler warm up through the same function, so that a profile's `runtime_bytes` is the baseline of
the run it is used for. Imports torch when called, never before.
"""

from __future__ import annotations

from importlib import import_module

# What the trainer brings besides torch. Each is imported by name, since this room lies above the rooms that use them.
_LIBRARIES = (
    "numpy.random",
    "PIL.Image",
    "psutil",
    "safetensors.torch",
    "rich.live",
    "rich.progress",
)
_SIDE = 256


def warm_up_torch(threads: int, device: str = "cpu") -> None:
    """Bring in libraries, thread pools and one dummy matrix product; on CUDA its context too."""
    for name in _LIBRARIES:
        import_module(name)
    import torch

    torch.set_num_threads(threads)
    square = torch.ones(_SIDE, _SIDE, device=device)
    (square @ square).sum().item()
