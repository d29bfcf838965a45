"""The meters, as the contract defines them; nothing else in the project reads the kernel's high-water mark."""

from edgetune.measure.baseline import warm_up_torch as warm_up_torch
from edgetune.measure.memory import PeakMeter as PeakMeter
