"""The one seam between edgetune and the machine: a file-system root, a command runner and a clock.

Every reader takes a `System`, so a fixture tree, a mounted SD card, a container and the virtual board are the same code
path, and a test injects an errno at the one place that opens files.
"""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

_MOST_BYTES = 1 << 20  # no pseudo-file we read is larger; garbage may be
_CHUNK_BYTES = 1 << 14  # most are far smaller; asking for more would cost more than the read


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _run(command: Sequence[str], timeout_s: float) -> str | None:
    """Standard output of a command whatever its exit status, or None where it can't be run or takes too long."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
            check=False,
            env=os.environ | {"LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired as expired:
        return (expired.stdout or b"").decode(errors="replace") or None
    except OSError:
        return None
    return done.stdout.decode(errors="replace")


class System:
    """Where facts about the machine come from.

    Args:
        root: another file-system root (a fixture, a mounted card); `/` is this machine.
        run: runs a command and returns its standard output, or None; a foreign root has `cmd/<name>.txt` files instead.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        root: Path | str = "/",
        run: Callable[[Sequence[str], float], str | None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.root = Path(root)
        self.live = self.root == Path("/")
        self.clock = clock
        self._run = run or (_run if self.live else self._recorded)
        self.warnings: list[str] = []

    def path(self, path: str) -> Path:
        """`path`, absolute on the machine, below this system's root."""
        return self.root / path.lstrip("/")

    def read_bytes(self, path: str) -> bytes:
        """The content of a (pseudo-)file, 1 MiB at most.

        Raises:
            OSError: as the kernel says it; ENODATA, EAGAIN and EIO are ordinary answers of a sensor.
        """
        content = b""
        # a pipe below a foreign root has no writer: opening it must not wait for one
        with open(self.path(path), "rb", buffering=0, opener=_open_at_once) as handle:
            if stat.S_ISFIFO(os.fstat(handle.fileno()).st_mode):
                raise OSError(errno.EINVAL, "is a pipe", path)
            while len(content) < _MOST_BYTES:
                chunk = handle.read(_CHUNK_BYTES)
                if chunk is None:  # Python's word for EAGAIN, which a gated thermal zone answers
                    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN), path)
                if not chunk:
                    break
                content += chunk  # the kernel hands a long pseudo-file out a page at a time
        return content

    def text(self, path: str) -> str | None:
        """The stripped text of a file (NULs too), or None where there is none or it can't be read."""
        try:
            return self.read_bytes(path).decode(errors="replace").strip("\0 \t\r\n")
        except OSError:
            return None

    def integer(self, path: str) -> int | None:
        """A file's decimal integer, or None where there is none."""
        text = self.text(path)
        try:
            return int(text) if text is not None and len(text) < 40 else None
        except ValueError:
            return None

    def glob(self, pattern: str) -> list[str]:
        """Paths matching an absolute pattern, as this machine would name them, in natural order."""
        try:
            found = ["/" + str(path.relative_to(self.root)) for path in self.root.glob(pattern.lstrip("/"))]
        except OSError:
            return []
        return sorted(found, key=lambda name: (len(name), name))

    def exists(self, path: str) -> bool:
        """Whether something is at `path`."""
        try:
            return self.path(path).exists()
        except OSError:
            return False

    def command(self, *command: str, timeout_s: float = 5.0) -> str | None:
        """Standard output of a command, or None where it can't be run."""
        return self._run(command, timeout_s)

    def warn(self, sentence: str) -> None:
        """Note something the user should know, once; names that files made up can't break the line."""
        sentence = "".join(letter if letter.isprintable() else "?" for letter in sentence)
        if sentence not in self.warnings:
            self.warnings.append(sentence)

    def _recorded(self, command: Sequence[str], timeout_s: float) -> str | None:
        """A command's recorded output below a foreign root."""
        del timeout_s
        return self.text(f"/cmd/{'-'.join(command).replace('/', '_')}.txt") or self.text(f"/cmd/{command[0]}.txt")
