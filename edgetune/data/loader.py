"""Batches of images, the same ones whatever the number of workers and wherever a run was resumed.

The order of an epoch is a permutation drawn from (seed, epoch); what augmentation does to an image is drawn from (seed,
epoch, index of the image). A batch is therefore a function of its place alone.

An image that can't be decoded is named in `warnings` once, left out of its batch, and counted. Whether there is any
shows when an epoch reaches it: a pass that reads every file first would cost what an epoch of a head costs. A batch
left with no image is not handed out; `Batch.number` tells which ones were.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgetune.data.decode import MOST_PIXELS
from edgetune.data.folder import Sample
from edgetune.data.preprocess import most_to_decode, normalise
from edgetune.data.workers import Job, Workers, read_job
from edgetune.errors import InputError

_MOST_NAMED = 20  # unreadable images named one by one in the warnings


class Batch(NamedTuple):
    """What a training step takes: images (B, 3, S, S) float32 and their labels (B,) int64.

    `indices` are positions in the loader's samples, `number` is the batch's place in its epoch.
    """

    images: NDArray[np.float32]
    labels: NDArray[np.int64]
    indices: NDArray[np.int64] | None = None
    number: int = 0


class Loader:
    """Batches of one part of a data set.

    Args:
        samples: the images.
        batch_size: images per batch; the last batch of an epoch may be smaller.
        image_size: side in pixels of what the model takes.
        mean: per channel, of pixels in [0, 1].
        std: per channel.
        augment: random crop and, with `flip`, mirroring; otherwise the centre.
        flip: mirror half of the augmented images; wrong for text and digits.
        seed: of order and augmentation.
        workers: processes that decode; 0 decodes here, with nothing prefetched. They start with the first epoch, are
            kept until `close`, and hand pixels over through sockets, since a board's or a container's /dev/shm is often
            smaller than a batch.
        drop_last: leave out a smaller last batch.
        shuffle: permute the images every epoch, and insist that no class becomes empty by unreadable images. Without
            it they come in the order given, and such a class is only warned of.
        most_pixels: largest image that is decoded whole, see `decode`.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        *,
        batch_size: int,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        augment: bool,
        seed: int,
        workers: int = 0,
        drop_last: bool = False,
        shuffle: bool = True,
        flip: bool = True,
        most_pixels: int = MOST_PIXELS,
    ) -> None:
        self.samples = samples
        self.batch_size, self.drop_last, self.shuffle = batch_size, drop_last, shuffle
        self._mean, self._std = mean, std
        self._seed, self._augment, self._flip = seed, augment, flip
        self._image_size, self._most_pixels = image_size, most_pixels
        self._workers = Workers(workers) if workers else None
        self._bad: dict[int, str] = {}
        self._left = Counter(sample.label for sample in samples)
        self._lost_classes: list[str] = []

    def __len__(self) -> int:
        """Images."""
        return len(self.samples)

    @property
    def batches(self) -> int:
        """Batches of an epoch in which every image can be read."""
        whole, rest = divmod(len(self.samples), self.batch_size)
        return whole + bool(rest and not self.drop_last)

    @property
    def skipped(self) -> int:
        """Images found unreadable so far."""
        return len(self._bad)

    @property
    def warnings(self) -> list[str]:
        """A sentence for each unreadable image, and for each class lost through them."""
        named = [
            f"{self.samples[index].path} was skipped: {reason}."
            for index, reason in list(self._bad.items())[:_MOST_NAMED]
        ]
        if len(self._bad) > _MOST_NAMED:
            named.append(
                f"{len(self._bad)} unreadable images were skipped, of which the first {_MOST_NAMED} are named."
            )
        lost = [
            f"No image in {folder} could be read; the accuracy of that class is unknown."
            for folder in self._lost_classes
        ]
        return named + lost + (self._workers.warnings if self._workers else [])

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Positions of the samples in the order an epoch shows them."""
        if not self.shuffle:
            return np.arange(len(self.samples))
        return np.random.default_rng([self._seed, epoch]).permutation(len(self.samples))

    def paths(self, epoch: int = 0) -> list[str]:
        """Files of the images that `epoch` handed out, in that order."""
        return [self.samples[index].path for index in self.order(epoch) if index not in self._bad]

    def most_to_decode(self) -> tuple[int, str]:
        """The most memory that reading an image takes, and which one: see `edgetune.data.preprocess`."""
        return most_to_decode([sample.path for sample in self.samples], self._image_size)

    def epoch(self, epoch: int, start_batch: int = 0, stop_batch: int | None = None) -> Iterator[Batch]:
        """The batches of an epoch.

        Args:
            epoch: its number, from 0.
            start_batch: leave out as many batches at the start, without reading them.
            stop_batch: the one after the last; None: all there are.

        Raises:
            InputError: no image of a class can be read (with `shuffle`), or none at all.
        """
        yield from self._read(epoch, list(self.plan(epoch, start_batch, stop_batch)))

    def stretches(self, epoch: int, start_batch: int = 0, *, whole: bool = False) -> Iterator[range]:
        """An epoch is one stretch: nothing is prepared before it."""
        yield range(start_batch, self.batches)

    def prepare(
        self, epoch: int, stop_batch: int | None = None, micro_batch_size: int = 1
    ) -> Generator[int, None, None]:
        """Nothing to do before an epoch: images are read as they are asked for."""
        yield from ()

    def ease(self) -> bool:
        """Nothing is prepared, so there is nothing to need less for."""
        return False

    def plan(
        self, epoch: int, start_batch: int = 0, stop_batch: int | None = None
    ) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Number and image indices of each batch of an epoch, unread; unreadable images included."""
        order = self.order(epoch)
        for number in range(start_batch, self.batches if stop_batch is None else min(stop_batch, self.batches)):
            yield number, order[number * self.batch_size :][: self.batch_size]

    def pick(self, indices: NDArray[np.int64], batch_size: int, view: int | None = None) -> Iterator[Batch]:
        """Images in the order given: their centres, or what augmentation makes of them.

        Args:
            indices: positions in the samples.
            batch_size: images per batch.
            view: the epoch whose augmentation to use; None leaves the images plain.
        """
        parts = [indices[place : place + batch_size] for place in range(0, len(indices), batch_size)]
        yield from self._read(view, list(enumerate(parts)))

    def _read(self, epoch: int | None, wanted: Sequence[tuple[int, NDArray[np.int64]]]) -> Iterator[Batch]:
        jobs = (self._job(epoch, indices.tolist()) for _, indices in wanted)
        results = self._workers.map(jobs) if self._workers else ((job, *read_job(job)) for job in jobs)
        for number, _ in wanted:
            job, pixels, bad = next(results)  # not by zip, which would keep the pixels until the next
            self.note(bad)
            indices = [index for index in job.indices if index not in bad]
            images = [normalise(pixels, self._mean, self._std)] if indices else []
            del pixels
            if indices:
                labels = [self.samples[index].label for index in indices]
                # nothing here refers to it afterwards: a caller that lets go of a batch holds one at a time
                yield Batch(
                    images.pop(),
                    np.array(labels, np.int64),
                    np.array(indices, np.int64),
                    number,
                )

    def _job(self, epoch: int | None, indices: list[int]) -> Job:
        indices = [index for index in indices if index not in self._bad]
        return Job(
            indices=indices,
            paths=[self.samples[index].path for index in indices],
            image_size=self._image_size,
            draw=f"{self._seed}/{epoch}" if self._augment and epoch is not None else None,
            flip=self._flip,
            most_pixels=self._most_pixels,
        )

    def note(self, bad: Mapping[int, str]) -> None:
        """Count unreadable images, and see what is left of their classes."""
        for index, reason in bad.items():
            if index in self._bad:
                continue
            self._bad[index] = reason
            path, label = self.samples[index]
            self._left[label] -= 1
            folder = os.path.dirname(path)
            if not any(self._left.values()):
                raise InputError(f"No image of {os.path.dirname(folder)} can be read ({path}: {reason}); replace them.")
            if not self._left[label]:
                if self.shuffle:
                    raise InputError(
                        f"No image in {folder} can be read ({os.path.basename(path)}: {reason}); replace them or remove"
                        " the class."
                    )
                self._lost_classes.append(folder)

    def bytes_on_disk(self) -> int:
        """None: for loops that count what sources of batches write to the disk."""
        return 0

    def close(self) -> None:
        """End the workers; the next epoch would start them again."""
        if self._workers:
            self._workers.close()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
