"""Decoding in other processes.

A worker is a bare interpreter with numpy and Pillow and nothing of the parent: neither its memory (a fork would hold
pages of it) nor its main module (which `multiprocessing` would import again). It talks over a socket and ends when that
closes, so no worker outlives its parent, however the parent ends. It has a session of its own, out of Ctrl-C's reach.
"""

from __future__ import annotations

import os
import queue
import random
import socket
import subprocess
import sys
import warnings
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import NamedTuple

import numpy as np

from edgetune.data.decode import UnreadableImageError
from edgetune.data.preprocess import Pixels, read

_START = "import sys; sys.path[:] = {path!r}; from edgetune.data.workers import serve; serve({fd})"


class Job(NamedTuple):
    """A batch to read. `draw` seeds the augmentation together with an image's index; None shows the centre."""

    indices: list[int]
    paths: list[str]
    image_size: int
    draw: str | None
    flip: bool
    most_pixels: int


def read_job(job: Job) -> tuple[Pixels, dict[int, str]]:
    """The readable images of a job, (B, S, S, 3) in its order, and why the others are not, by index."""
    pixels = np.empty((len(job.indices), job.image_size, job.image_size, 3), np.uint8)
    bad: dict[int, str] = {}
    filled = 0
    for index, path in zip(job.indices, job.paths, strict=True):
        rng = None if job.draw is None else random.Random(f"{job.draw}/{index}")
        try:
            pixels[filled] = read(path, job.image_size, rng, flip=job.flip, most_pixels=job.most_pixels)
        except UnreadableImageError as error:
            bad[index] = str(error)
        else:
            filled += 1
    return pixels[:filled], bad


def serve(fd: int) -> None:
    """A worker's life: read jobs until the parent is gone."""
    warnings.simplefilter("ignore")  # the parent names what can't be read
    with Connection(fd) as parent:
        try:
            while True:
                pixels, bad = read_job(Job(*parent.recv()))
                parent.send((len(pixels), bad))
                parent.send_bytes(pixels.data.cast("B") if pixels.size else b"")
        except (EOFError, OSError, MemoryError):  # of the last the parent hears by the end of this process
            return


class _Worker:
    """One process and the socket to it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _START.format(path=sys.path, fd=theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                # a pool of BLAS threads costs memory even when nothing is multiplied
                env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
        self.connection = Connection(ours.detach())

    def read(self, job: Job) -> tuple[Pixels, dict[int, str]]:
        self.connection.send(tuple(job))
        count, bad = self.connection.recv()
        pixels = np.empty((count, job.image_size, job.image_size, 3), np.uint8)
        if pixels.size:
            self.connection.recv_bytes_into(pixels.data.cast("B"))
        else:
            self.connection.recv_bytes()
        return pixels, bad

    def close(self) -> None:
        self.connection.close()
        try:
            self.process.wait(1)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Workers:
    """So many processes, started when first needed and kept until `close`."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.warnings: list[str] = []
        self._idle: queue.SimpleQueue[_Worker | None] = queue.SimpleQueue()
        self._started: list[_Worker] = []
        self._threads: ThreadPoolExecutor | None = None

    def map(self, jobs: Iterator[Job]) -> Iterator[tuple[Job, Pixels, dict[int, str]]]:
        """Jobs with their results, in order; one more than there are workers is under way or waiting to be taken."""
        threads = self._start()
        pending: deque[tuple[Job, Future[tuple[Pixels, dict[int, str]]]]] = deque()
        try:
            for job in jobs:
                pending.append((job, threads.submit(self._read, job)))
                if len(pending) > self.count:
                    yield _taken(pending)
            while pending:
                yield _taken(pending)
        finally:
            for _, result in pending:
                result.cancel()

    def close(self) -> None:
        """End the processes."""
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
            self._threads = None
        for worker in self._started:
            worker.close()
        self._started.clear()
        self._idle = queue.SimpleQueue()

    def _start(self) -> ThreadPoolExecutor:
        if self._threads is None:
            self._started = [_Worker() for _ in range(self.count)]
            for worker in self._started:
                self._idle.put(worker)
            # a thread per worker does nothing but wait for it
            self._threads = ThreadPoolExecutor(self.count, "edgetune-data")
        return self._threads

    def _read(self, job: Job) -> tuple[Pixels, dict[int, str]]:
        worker = self._idle.get()
        try:
            if worker is not None:
                return worker.read(job)
        except (EOFError, OSError):
            worker = None  # its place stays empty
            self._say("A decoding process ended, perhaps for want of memory; its images are read in this process.")
        except BaseException:
            if worker is not None:  # half an answer may still lie in its socket, and pixels in its memory
                worker.close()
            worker = None
            raise
        finally:
            self._idle.put(worker)
        return read_job(job)

    def _say(self, sentence: str) -> None:
        if sentence not in self.warnings:
            self.warnings.append(sentence)


def _taken(pending: deque[tuple[Job, Future[tuple[Pixels, dict[int, str]]]]]) -> tuple[Job, Pixels, dict[int, str]]:
    """The next result; no name of a generator that waits goes on holding its pixels."""
    job, result = pending.popleft()
    return (job, *result.result())
