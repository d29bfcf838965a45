"""The feature cache as a plan sees it: what it takes on disk, and what a run does where there is no room for it.

A cache holds what enters the lowest trainable block, for each training image and view, and for each validation image
where those are needed more than once. Never imports torch.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec

from edgetune.data.sizes import feature_bytes
from edgetune.model.spec import ViTSpec
from edgetune.plan.bill import filling_part
from edgetune.plan.job import Job, entering, job_for
from edgetune.plan.lean_bill import group_size
from edgetune.plan.methods import Method
from edgetune.schema import Engine, FeatureCachePlan
from edgetune.units import format_size

_STRETCHES = 16  # of an epoch, at most


def fit_to_disk(
    method: Method,
    spec: ViTSpec,
    train_images: int,
    val_images: int,
    evaluations: int,
    room_bytes: int,
    engine: Engine = "torch",
) -> tuple[Method, list[str]]:
    """The method, with a smaller feature cache or without one where it has no room; and a sentence that says so.

    Without a cache the frozen blocks are passed at every step, so they are kept in memory instead of on disk: in bf16
    where the engine has it.
    """
    if method.levers.feature_cache == "off":
        return method, []
    job = job_for(method, spec, batch_size=1, micro_batch_size=1)
    cache = planned_cache(job, train_images, val_images, evaluations)
    weights = method.levers.frozen_weights
    if weights == "disk" and "frozen_weights" not in method.given:
        weights = "fp32" if engine == "onnx" else "bf16"
    without = method._replace(
        levers=msgspec.structs.replace(method.levers, feature_cache="off", frozen_weights=weights)
    )
    if cache is None:  # nothing lies below the lowest trainable block
        return without, []
    needed_bytes = cache.train_bytes + cache.val_bytes
    if needed_bytes <= room_bytes:
        return method, []
    if "feature_cache" not in method.given and method.levers.feature_cache == "fp16":
        smaller = method._replace(levers=msgspec.structs.replace(method.levers, feature_cache="int8"))
        job = job_for(smaller, spec, batch_size=1, micro_batch_size=1)
        found = planned_cache(job, train_images, val_images, evaluations)
        if found is not None and found.train_bytes + found.val_bytes <= room_bytes:
            return smaller, [
                f"cached features would take {format_size(needed_bytes)} of disk and may take"
                f" {format_size(room_bytes)}, so they are kept in 8 bits; --disk raises the cap."
            ]
    return without, [
        f"cached features would take {format_size(needed_bytes)} of disk and may take {format_size(room_bytes)}, so the"
        " frozen blocks run at every step: slower; --disk raises the cap."
    ]


def planned_cache(job: Job, train_images: int, val_images: int, evaluations: int) -> FeatureCachePlan | None:
    """The cache of a job, or None where it has none or nothing to keep in it."""
    levers, spec = job.levers, job.spec
    if levers.feature_cache == "off" or not job.lowest:
        return None
    tokens = round(entering(spec, job.keep_max)[job.lowest]) if job.lowest < spec.depth else head_tokens(spec)
    val_tokens = spec.tokens if job.lowest < spec.depth else head_tokens(spec)
    precision = levers.feature_cache
    return FeatureCachePlan(
        precision=precision,
        views=levers.feature_views,
        tokens=tokens,
        train_bytes=levers.feature_views * feature_bytes(train_images, (tokens, spec.width), precision),
        val_bytes=feature_bytes(val_images, (val_tokens, spec.width), precision) if evaluations > 1 else 0,
    )


def stretch_batches(job: Job, batches: int, group: int | None = None) -> int:
    """Batches of an epoch that are prepared together where a cap on time or energy may end the run.

    Few, so that little is prepared in vain; but as many images as pass the frozen blocks together, at least: `group`,
    where that is known.
    """
    if not job.over_features:
        return batches
    if group is None:
        group = group_size(job.spec, filling_part(job))
    return min(batches, max(-(-group // job.batch_size), -(-batches // _STRETCHES)))


def disk_room(asked_bytes: int | None) -> int:
    """Disk that cached features may take: as asked, else a quarter of what is free here."""
    return asked_bytes if asked_bytes is not None else shutil.disk_usage(Path.cwd()).free // 4


def head_tokens(spec: ViTSpec) -> int:
    """Tokens to keep where nothing but the classifier trains."""
    return spec.readers or spec.tokens
