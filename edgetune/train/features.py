"""Batches of cached features, in the place of batches of images.

`FeatureLoader` answers what the loop asks of a `Loader`. The first epoch of a view passes every image through the
frozen blocks and keeps what enters the lowest trained one on disk; batches of that and of later epochs are read from
there. Which images a batch holds, and in which order, is the image loader's doing, so a run with a cache sees what the
run without would see, but for augmentation: view 0 is the plain image, as validation sees it, view v > 0 is what
augmentation makes of it in epoch v, and epochs take turns with the views. (A single random view would be the worst of
both: not what validation shows, and no variety either.)

Records lie in the order in which a view's first epoch shows their images. A run that no cap ends prepares a view whole;
under a cap on time or energy, that epoch is prepared in stretches, each before its batches: a run that the cap ends in
its first epoch has trained on the images it prepared, instead of having prepared images it never trained on.

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

from edgetune.allocator import release_free_memory
from edgetune.data.features import FeatureFile, FeatureWriter, partial_path
from edgetune.data.folder import Sample
from edgetune.data.loader import Batch, Loader
from edgetune.errors import InputError
from edgetune.model.spec import ViTSpec
from edgetune.plan.bill import filling_part
from edgetune.plan.cache import stretch_batches
from edgetune.plan.job import job_of
from edgetune.plan.lean_bill import group_size
from edgetune.schema import FeatureCachePlan, Plan
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
        stretch: batches of an epoch that are prepared together where a cap may end the run.
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
        stretch: int,
    ) -> None:
        self._loader, self._engine, self._cache = loader, engine, cache
        self._folder, self._name = folder, name
        self._all_tokens, self._views = all_tokens, views
        self._stretch = stretch
        self._files: dict[int, FeatureFile | FeatureWriter] = {}  # of views; one in the making is read from already
        self._records: dict[int, NDArray[np.int64]] = {}  # of views: which record is an image's
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

    def stretches(self, epoch: int, start_batch: int = 0, *, whole: bool = False) -> Iterator[range]:
        """The rest of an epoch in parts that are prepared one by one: of one that shows its view for the first time."""
        batches = self._loader.batches
        size = batches if whole or epoch >= self._views else self._stretch
        while start_batch < batches:
            stop = min(batches, (start_batch // size + 1) * size)
            yield range(start_batch, stop)
            start_batch = stop

    def prepare(
        self, epoch: int, stop_batch: int | None = None, micro_batch_size: int = 1
    ) -> Generator[int, None, None]:
        """Fill the cache of the epoch's view: 0 before a group of images, how many after it; nothing if that is done.

        Args:
            epoch: its number, from 0.
            stop_batch: the batch before which all have to be there; None: all of the epoch.
            micro_batch_size: images that train at a time.

        Raises:
            OutOfMemoryError: there is no memory for a group; `ease` makes them smaller.
        """
        view = epoch % self._views
        file = self._files.get(view) or self._open(view)
        if isinstance(file, FeatureFile):
            return
        wanted = len(self)
        if stop_batch is not None and epoch == view:  # later ones show the images in other orders
            wanted = min(wanted, stop_batch * self._loader.batch_size)
        if file.complete < wanted:
            yield from self._fill(file, view, wanted, micro_batch_size)
            self._engine.free_frozen()
            release_free_memory()  # training has tensors of other sizes
        if file.complete == len(self):
            file.finish()
            finished = FeatureFile.open(file.path, self._key(view))
            if finished is None:
                raise InputError(f"{file.path} was removed while it was needed; go on with --resume.")
            self._files[view] = finished

    def epoch(self, epoch: int, start_batch: int = 0, stop_batch: int | None = None) -> Iterator[Batch]:
        """The batches of an epoch; see `Loader.epoch`. Their `images` are features (B, N, C)."""
        for _ in self.prepare(epoch, stop_batch, self._engine.plan.micro_batch_size):
            pass
        view = epoch % self._views
        file, records = self._files[view], self._records[view]
        for number, indices in self._loader.plan(epoch, start_batch, stop_batch):
            features = file.read(records[indices])
            there = features.any(axis=(1, 2))
            if not there.all():  # found when they were made, perhaps by an earlier sitting
                unread = "it could not be read when its features were made"
                self._loader.note(dict.fromkeys(indices[~there].tolist(), unread))
                features, indices = features[there], indices[there]
            if len(indices):
                labels = np.array([self.samples[index].label for index in indices], np.int64)
                yield Batch(features, labels, indices, number)

    # -- the cache ----------------------------------------------------------------------------------------------------

    def bytes_on_disk(self) -> int:
        """Of the cache, by whichever sitting of the run they were written."""
        paths = [self._path(view) for view in range(self._views)]
        files = [file for path in paths for file in (path, partial_path(path)) if file.exists()]
        return sum(file.stat().st_size for file in files)

    def _path(self, view: int) -> Path:
        return self._folder / f"features-{self._name}-{view}"

    def _open(self, view: int) -> FeatureFile | FeatureWriter:
        """The file of a view: finished, or in the making from where an interrupted run left off."""
        order = self._loader.order(view)
        self._records[view] = np.argsort(order)
        path, key = self._path(view), self._key(view)
        file: FeatureFile | FeatureWriter | None = FeatureFile.open(path, key)
        if file is None:
            shape = self._tokens(), self._engine.spec.width
            file = FeatureWriter(path, count=len(self), shape=shape, precision=self._cache.precision, key=key)
        self._files[view] = file
        return file

    def _key(self, view: int) -> str:
        """Digest of what decides the features, besides the run's own weights and plan, which never change."""
        plan = self._engine.plan
        samples: list[Sample] = list(self.samples)
        recipe = plan.recipe
        facts = [view, plan.seed, recipe.augment, recipe.flip, plan.lowest_trainable_block, samples, "as first shown"]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def ease(self) -> bool:
        """See `Source.ease`."""
        eased, self._grouped = self._grouped, False
        return eased

    def _fill(self, writer: FeatureWriter, view: int, wanted: int, part: int) -> Iterator[int]:
        """Compute features until there are those of so many images, in whole groups; yields as `prepare` does."""
        engine = self._engine
        spec = engine.spec
        order = self._loader.order(view)
        engine.rest()  # features are computed between steps
        part = at_a_time(engine.plan, part) if self._grouped else part
        group = group_size(spec, part) if self._grouped else part
        with memory_errors():
            stream = np.empty((min(group, len(self)), spec.tokens, spec.width), np.float32)
        while writer.complete < wanted:
            yield 0
            # a group begins where it would have without an interruption, so that its products are the same
            start = writer.complete // group * group
            stop = min(start + group, len(self))
            found = np.zeros(stop - start, bool)
            x = stream[: stop - start]
            with memory_errors():
                for batch in self._loader.pick(order[start:stop], part, view or None):
                    assert batch.indices is not None  # of a Loader they never are
                    places = self._records[view][batch.indices] - start
                    x[places] = engine.embed_images(batch.images)
                    found[places] = True
                    del batch  # or the last one's images would be there while the blocks run
                x[~found] = 0
                features = engine.run_frozen(x, part, all_tokens=self._all_tokens)
            features[~found] = 0
            written = features[writer.complete - start :]
            writer.put(writer.complete, written)
            if not self._all_tokens:  # evaluation is no part of training's work
                engine.count_features(int(found.sum()))
            yield len(written)

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
    stretch = stretch_batches(job_of(plan), train.batches)
    features = FeatureLoader(train, engine, cache, at, "train", all_tokens=False, views=cache.views, stretch=stretch)
    if not cache.val_bytes:
        return features, val
    return features, FeatureLoader(val, engine, cache, at, "val", all_tokens=True, views=1, stretch=val.batches)
