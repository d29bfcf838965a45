"""edgetune: fine-tune vision transformers on small machines, inside limits.

    profile = edgetune.profile_device()
    plan = edgetune.make_plan("photos", model="vit_nano_patch8_64", profile=profile, memory_bytes=800_000_000)
    result = edgetune.fit(plan, "runs/first", profile=profile)

Importing this package imports neither torch nor numpy; each call brings what it needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgetune.__about__ import __version__

if TYPE_CHECKING:
    from edgetune.plan import make_plan
    from edgetune.profile import profile_device
    from edgetune.train.fit import fit, resume

__all__ = ["__version__", "fit", "make_plan", "profile_device", "resume"]

_HOMES = {
    "fit": "edgetune.train.fit",
    "make_plan": "edgetune.plan",
    "profile_device": "edgetune.profile",
    "resume": "edgetune.train.fit",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'edgetune' has no attribute {name!r}")
