"""Batches of cached features, in the place of batches of images.

`FeatureLoader` answers what the loop asks of a `Loader`. The first epoch of a view first passes every image through the
frozen blocks and keeps what enters the lowest trained one on disk; batches of that and of later epochs are read from
there. Which images a batch holds, and in which order, is the image loader's doing, so a run with a cache sees what the
run without would see, but for augmentation: view 0 is the plain image, as validation sees it, view v > 0 is what
augmentation makes of it in epoch v, and epochs take turns with the views. (A single random view would be the worst of
both: not what validation shows, and no variety either.)

Images pass in groups of a few MiB, since a group reads the frozen blocks' weights once, from disk as a rule. An image
that can't be read leaves a record of zeros, which no network computes, and is left out of its batches.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgetune.data.features import FeatureFile, FeatureWriter
from edgetune.data.folder import Sample
from edgetune.data.loader import Batch, Loader
from edgetune.errors import InputError
from edgetune.model.spec import ViTSpec
from edgetune.plan.bill import filling_part
from edgetune.plan.job import job_of
from edgetune.plan.lean_bill import group_size
from edgetune.schema import FeatureCachePlan, Plan
from edgetune.train.allocator import release_free_memory
from edgetune.train.engine import Source
from edgetune.train.folder import RunFolder
from edgetune.train.scarcity import memory_errors


class Extractor(Protocol):
    """What an engine offers: its frozen part, from images to what enters the lowest block that may train."""

    plan: Plan
    spec: ViTSpec

    def embed_images(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Tokens (B, N, C) of images (B, 3, S, S)."""

    def run_frozen(self, x: NDArray[np.float32], part: int, *, all_tokens: bool) -> NDArray[np.float32]:
        """Pass embedded tokens (B, N, C), which may be written over, `part` images at a time; (B, N', C).

        Raises:
            OutOfMemoryError: there is no memory for so many images.
        """

    def rest(self) -> None:
        """Give back memory that only training needs, until the next step."""

    def free_frozen(self) -> None:
        """Give back memory until the frozen part is needed again."""

    def count_features(self, images: int) -> None:
        """Note that features of so many images were computed; the next step reports the work."""


def at_a_time(plan: Plan, part: int) -> int:
    """Images that pass the frozen blocks at a time for a cache: more than train at a time, if those are as planned."""
    return max(part, filling_part(job_of(plan))) if part >= plan.micro_batch_size else part


class FeatureLoader:
    """See the module.

    Args:
        loader: hands out the images.
        engine: computes the features.
        cache: how they are kept.
        folder: where the files lie.
        name: of this part of the data set, for the files' names.
        all_tokens: keep every token, as evaluation wants it.
        views: augmented views to keep.
    """

    def __init__(
        self,
        loader: Loader,
        engine: Extractor,
        cache: FeatureCachePlan,
        folder: Path,
        name: str,
        *,
        all_tokens: bool,
        views: int,
    ) -> None:
        self._loader, self._engine, self._cache = loader, engine, cache
        self._folder, self._name = folder, name
        self._all_tokens, self._views = all_tokens, views
        self._files: dict[int, FeatureFile] = {}
        self._bytes_written = 0
        self._grouped = True  # until memory is short

    # -- as a Loader --------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Images."""
        return len(self._loader)

    @property
    def samples(self) -> Any:
        """The images and their labels."""
        return self._loader.samples

    @property
    def warnings(self) -> list[str]:
        """See `Loader.warnings`."""
        return self._loader.warnings

    def close(self) -> None:
        """End the workers and let go of the files."""
        self._loader.close()
        for file in self._files.values():
            file.close()
        self._files.clear()

    def prepare(self, epoch: int, micro_batch_size: int) -> Generator[int, None, None]:
        """Fill the cache of the epoch's view, a group of images at a time: how many; nothing where that is done.

        Raises:
            OutOfMemoryError: there is no memory for a group; `ease` makes them smaller.
        """
        view = epoch % self._views
        if view in self._files:
            return
        path, key = self._folder / f"features-{self._name}-{view}", self._key(view)
        file = FeatureFile.open(path, key)
        if file is None:
            yield from self._fill(path, key, view, micro_batch_size)
            self._engine.free_frozen()
            release_free_memory()  # training has tensors of other sizes
            file = FeatureFile.open(path, key)
        if file is None:
            raise InputError(f"{path} was removed while it was needed; go on with --resume.")
        self._files[view] = file

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """The batches of an epoch; see `Loader.epoch`. Their `images` are features (B, N, C)."""
        for _ in self.prepare(epoch, self._engine.plan.micro_batch_size):
            pass
        file = self._files[epoch % self._views]
        for number, indices in self._loader.plan(epoch, start_batch):
            features = file.read(indices)
            there = features.any(axis=(1, 2))
            if not there.all():
                features, indices = features[there], indices[there]
            if len(indices):
                labels = np.array([self.samples[index].label for index in indices], np.int64)
                yield Batch(features, labels, indices, number)

    # -- the cache ----------------------------------------------------------------------------------------------------

    def take_bytes_written(self) -> int:
        """Bytes written to the cache since this was last asked."""
        written, self._bytes_written = self._bytes_written, 0
        return written

    def _key(self, view: int) -> str:
        """Digest of what decides the features, besides the run's own weights and plan, which never change."""
        plan = self._engine.plan
        samples: list[Sample] = list(self.samples)
        facts = [view, plan.seed, plan.recipe.augment, plan.recipe.flip, plan.lowest_trainable_block, samples]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def ease(self) -> bool:
        """See `Source.ease`."""
        eased, self._grouped = self._grouped, False
        return eased

    def _fill(self, path: Path, key: str, view: int, part: int) -> Iterator[int]:
        """Compute the features of every image, from where an interrupted run left off; yields how many at a time."""
        engine = self._engine
        spec = engine.spec
        tokens = self._tokens()
        engine.rest()  # validation's features are computed between steps
        part = at_a_time(engine.plan, part) if self._grouped else part
        group = group_size(spec, part) if self._grouped else part
        with FeatureWriter(
            path, count=len(self), shape=(tokens, spec.width), precision=self._cache.precision, key=key
        ) as writer:
            with memory_errors():
                stream = np.empty((min(group, len(self)), spec.tokens, spec.width), np.float32)
            while writer.complete < len(self):
                # a group begins where it would have without an interruption, so that its products are the same
                start = writer.complete // group * group
                stop = min(start + group, len(self))
                found = np.zeros(stop - start, bool)
                x = stream[: stop - start]
                with memory_errors():
                    for batch in self._loader.in_order(part, start, stop, view or None):
                        assert batch.indices is not None  # of a Loader they never are
                        places = batch.indices - start
                        x[places] = engine.embed_images(batch.images)
                        found[places] = True
                    x[~found] = 0
                    features = engine.run_frozen(x, part, all_tokens=self._all_tokens)
                features[~found] = 0
                written = features[writer.complete - start :]
                writer.put(writer.complete, written)
                engine.count_features(int(found.sum()))
                yield len(written)
            writer.finish()
        self._bytes_written += path.stat().st_size  # by whoever wrote it: a killed run could not count its part

    def _tokens(self) -> int:
        spec, plan = self._engine.spec, self._engine.plan
        if self._all_tokens and plan.lowest_trainable_block < spec.depth:
            return spec.tokens
        return self._cache.tokens


def cached_sources(
    plan: Plan, engine: Extractor, folder: RunFolder, train: Loader, val: Loader
) -> tuple[Source, Source]:
    """Where training and validation batches come from under a plan: images, or cached features of them."""
    cache = plan.feature_cache
    if cache is None:
        return train, val
    at = folder.base.parent
    features = FeatureLoader(train, engine, cache, at, "train", all_tokens=False, views=cache.views)
    if not cache.val_bytes:
        return features, val
    return features, FeatureLoader(val, engine, cache, at, "val", all_tokens=True, views=1)
