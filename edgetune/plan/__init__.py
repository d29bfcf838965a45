"""Which plan fits the caps, what it costs and why. Never imports torch, never opens an image."""

from edgetune.plan.planner import make_plan as make_plan
