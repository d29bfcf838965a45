"""The feature cache as planned: its size to the byte, and what happens where the disk has no room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune.data.features import FeatureWriter
from edgetune.model.registry import find_spec
from edgetune.plan import make_plan
from edgetune.plan.cache import fit_to_disk, head_tokens, planned_cache
from edgetune.plan.job import Job, job_for
from edgetune.plan.levers import Levers
from edgetune.plan.methods import Method, find_method

NANO = find_spec("vit_nano_patch8_64")
LEVERS = Levers(trainer="lean", feature_cache="fp16", frozen_weights="disk")


def method_of(name: str, depth: int = 6, **levers: object) -> Method:
    found = find_method(name, depth)
    return found._replace(levers=msgspec.structs.replace(LEVERS, **levers))


def job_of(method: Method, spec=NANO) -> Job:
    return job_for(method, spec, batch_size=4, micro_batch_size=2)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("views", [1, 3])
def test_a_cache_takes_the_bytes_that_were_planned(precision, views: int, tmp_path: Path) -> None:
    cache = planned_cache(job_of(method_of("last-2", feature_cache=precision, feature_views=views)), 10, 4, 5)
    assert cache is not None
    assert (cache.precision, cache.views, cache.tokens) == (precision, views, 65)
    for name, count, expected in (("train", 10, cache.train_bytes / views), ("val", 4, cache.val_bytes)):
        with FeatureWriter(tmp_path / name, count=count, shape=(65, 192), precision=precision, key="k") as writer:
            writer.put(0, np.ones((count, 65, 192), np.float32))
            writer.finish()
        assert (tmp_path / name).stat().st_size == expected


def test_tokens_dropped_below_the_trained_blocks_are_not_kept() -> None:
    method = method_of("edgetune")._replace(band=(0.25, 0.5), trained=2, k=2)
    assert job_of(method).keep_max[3:] == (32, 32, 32)
    assert planned_cache(job_of(method), 10, 4, 5).tokens == 1 + 32
    whole = planned_cache(job_of(method_of("last-2")), 10, 4, 5)
    assert planned_cache(job_of(method), 10, 4, 5).val_bytes == whole.val_bytes  # validation sees every token


def test_a_classifier_alone_keeps_what_it_reads() -> None:
    assert planned_cache(job_of(method_of("head")), 10, 4, 5).tokens == 1
    distilled = find_spec("deit_tiny_distilled_patch16_224")
    averaged = find_spec("vit_wee_patch16_reg1_gap_256")
    assert head_tokens(distilled) == 2
    assert head_tokens(averaged) == averaged.tokens
    assert planned_cache(job_of(method_of("head", 12), distilled), 10, 4, 5).tokens == 2


def test_what_is_looked_at_once_is_not_kept() -> None:
    cache = planned_cache(job_of(method_of("last-2")), 10, 4, 1)
    assert cache.val_bytes == 0
    assert cache.train_bytes > 0


def test_there_is_nothing_to_keep_below_the_first_block() -> None:
    for method in (method_of("full"), method_of("last-6")):
        assert planned_cache(job_of(method), 10, 4, 5) is None
        found, said = fit_to_disk(method, NANO, 10, 4, 5, 1 << 40)
        assert found.levers.feature_cache == "off"
        assert said == []


@given(st.integers(1, 500), st.integers(1, 100), st.integers(1, 4), st.sampled_from(["fp16", "int8"]))
def test_a_cache_is_kept_if_and_only_if_it_has_room(train: int, val: int, views: int, precision) -> None:
    method = method_of("last-2", feature_cache=precision, feature_views=views)
    cache = planned_cache(job_of(method), train, val, 5)
    needed = cache.train_bytes + cache.val_bytes
    assert fit_to_disk(method, NANO, train, val, 5, needed) == (method, [])
    found, said = fit_to_disk(method, NANO, train, val, 5, needed - 1)
    smaller = planned_cache(job_of(method_of("last-2", feature_cache="int8", feature_views=views)), train, val, 5)
    fits = precision == "fp16" and smaller.train_bytes + smaller.val_bytes < needed
    assert found.levers.feature_cache == ("int8" if fits else "off")
    assert len(said) == 1
    assert "--disk" in said[0]
    by_hand = method._replace(given=frozenset({"feature_cache"}))
    assert fit_to_disk(by_hand, NANO, train, val, 5, needed - 1)[0].levers.feature_cache == "off"
    assert fit_to_disk(method, NANO, train, val, 5, 0)[0].levers.feature_cache == "off"


@pytest.mark.parametrize(("given", "expected"), [((), "bf16"), (("frozen_weights",), "disk")])
def test_without_a_cache_frozen_weights_come_to_memory_unless_set_by_hand(given: tuple[str, ...], expected) -> None:
    method = method_of("last-2", feature_cache="fp16", frozen_weights="disk")._replace(given=frozenset(given))
    found, said = fit_to_disk(method, NANO, 10, 4, 5, 0)
    assert (found.levers.feature_cache, found.levers.frozen_weights) == ("off", expected)
    assert len(said) == 1


@pytest.mark.parametrize(("before", "after"), [("disk", "bf16"), ("int8", "int8"), ("fp32", "fp32"), ("bf16", "bf16")])
def test_without_a_cache_no_weights_are_read_from_disk_at_every_step(before, after) -> None:
    found, _ = fit_to_disk(method_of("last-2", frozen_weights=before), NANO, 10, 4, 5, 0)
    assert found.levers.frozen_weights == after
    off = method_of("last-2", feature_cache="off", frozen_weights="disk")
    assert fit_to_disk(off, NANO, 10, 4, 5, 0) == (off, [])  # asked for by hand


def test_a_plan_says_that_its_cache_has_no_room(photos: Path) -> None:
    levers = ["trainer=lean", "feature_cache=fp16", "trained_blocks=2", "token_max=1"]
    arguments: dict[str, Any] = {"model": "vit_nano_patch8_64", "method": "edgetune", "levers": levers}
    roomy = make_plan(photos, **arguments, disk_bytes=1 << 30)
    assert roomy.feature_cache is not None
    assert roomy.frozen_weights == "disk"
    assert roomy.caps.disk_bytes == 1 << 30
    size = roomy.feature_cache.train_bytes + roomy.feature_cache.val_bytes
    assert make_plan(photos, **arguments, disk_bytes=size).feature_cache == roomy.feature_cache
    tight = make_plan(photos, **arguments, disk_bytes=size - 1)
    assert tight.feature_cache is None
    assert tight.frozen_weights == "bf16"
    assert any("cached features would take" in sentence and "--disk" in sentence for sentence in tight.warnings)
