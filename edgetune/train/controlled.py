"""What every engine begins with: plan, model, and ALaST's controller where the plan has one."""

from __future__ import annotations

from collections.abc import Sequence

from edgetune.alast import Controller
from edgetune.data.loader import Batch
from edgetune.model.spec import ViTSpec
from edgetune.plan.work import step_flops
from edgetune.schema import Plan
from edgetune.train.engine import StepReport


class ControlledEngine:
    """Part of an `edgetune.train.engine.Engine`.

    Args:
        plan: the constraints.
        spec: the model at the plan's image size and number of classes.
    """

    def __init__(self, plan: Plan, spec: ViTSpec) -> None:
        self.plan, self.spec = plan, spec
        self.controller: Controller | None = None
        if plan.alast:
            self.controller = Controller.from_plan(
                plan.alast,
                plan.blocks,
                plan.k,
                prefix_tokens=spec.prefix,
                class_token=spec.class_token,
                seed=plan.seed,
            )

    def limit(self, k: int, most_tokens: Sequence[int]) -> None:
        """See `Engine.limit`; without the method there is nothing to bound."""
        if self.controller is not None:
            self.controller.restore()
            self.controller.tighten(k=k, keep_max_tokens=most_tokens)

    def ease(self) -> bool:
        """See `Engine.ease`: a micro-batch at a time is what evaluation takes anyway."""
        return False

    def _report(
        self, batch: Batch, loss: float, trained: tuple[int, ...], kept: list[float], other_flops: int = 0
    ) -> StepReport:
        """What a step on `batch` has to say; `other_flops` is work that was done for it elsewhere."""
        return StepReport(
            loss=loss,
            trained=trained,
            kept=kept,
            budgets=list(self.controller.budgets) if self.controller else None,
            flops=len(batch.labels) * step_flops(self.spec, self.plan, trained, kept) + other_flops,
        )
