"""Which plan fits the caps, what it costs and why. Never imports torch, never opens an image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgetune.plan.planner import make_plan

__all__ = ["make_plan"]


def __getattr__(name: str) -> Any:
    if name == "make_plan":  # a run needs parts of this package, and no search
        from edgetune.plan.planner import make_plan

        return make_plan
    raise AttributeError(f"module 'edgetune.plan' has no attribute {name!r}")
