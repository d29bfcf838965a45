"""A plan's memory held against the machine as it really is, before the first step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from edgetune.data.loader import Loader
from edgetune.errors import InputError
from edgetune.measure.memory import PeakMeter
from edgetune.plan.bill import DECODE_BYTES
from edgetune.schema import Plan
from edgetune.units import format_size


def check_room(plan: Plan, memory: PeakMeter) -> list[str]:
    """Hold the memory cap against the bare process as it really is, now that it can be measured.

    Raises:
        InputError: the bare process alone breaks the cap.
    """
    cap, baseline = plan.caps.memory_bytes, memory.baseline_bytes
    if cap is None or baseline is None:
        return []
    if baseline >= cap:
        raise InputError(
            f"--memory {format_size(cap)} is less than the {format_size(baseline)} that the bare process takes here;"
            " raise it, or plan with a --profile of this machine."
        )
    needed = baseline + plan.predicted.peak_memory_bytes - plan.predicted.memory.runtime
    if needed <= cap:
        return []
    return [
        f"the bare process takes {format_size(baseline)}, more than the {format_size(plan.predicted.memory.runtime)}"
        f" planned for: up to {format_size(needed)} may be needed where {format_size(cap)} are allowed."
    ]


class Beyond(NamedTuple):
    """What takes more than was planned for, in bytes, and what there is to say of it."""

    process_bytes: int  # the bare process
    images_bytes: int  # images being decoded
    warnings: list[str]


def beyond_plan(plan: Plan, memory: PeakMeter, loaders: Sequence[Loader]) -> Beyond:
    """The bare process as measured, and the largest of some images by their headers, beside what the plan counts on.

    A plan opens no image: it counts on JPEGs, which are decoded small, and on others of a megapixel or so.
    """
    baseline = memory.baseline_bytes
    process_bytes = 0 if baseline is None else max(0, baseline - plan.predicted.memory.runtime)
    largest_bytes, path = max(loader.most_to_decode() for loader in loaders)
    images_bytes = max(1, plan.workers) * max(0, largest_bytes - DECODE_BYTES)
    cap, needed = plan.caps.memory_bytes, plan.predicted.peak_memory_bytes + process_bytes + images_bytes
    if not images_bytes or cap is None or needed <= cap:
        return Beyond(process_bytes, images_bytes, [])
    sentence = (
        f"decoding an image such as {path} takes {format_size(largest_bytes)}, more than the"
        f" {format_size(DECODE_BYTES)} planned for: up to {format_size(needed)} may be needed where {format_size(cap)}"
        " are allowed; make such files smaller, or JPEGs that are not progressive."
    )
    return Beyond(process_bytes, images_bytes, [sentence])


def files_in_memory(plan: Plan, memory: PeakMeter) -> list[str]:
    """No plan counts the files of a run as memory, so it has to be said where they are."""
    cache = plan.feature_cache
    features = f", and {format_size(cache.train_bytes + cache.val_bytes)} of cached features," if cache else ""
    return [
        f"{folder} is on a file system in memory: weights and states{features} that are written there count as memory,"
        " and no plan foresaw them; choose --out on a disk."
        for folder in memory.folders_in_memory
    ]
