"""Writing without losing: a file is either the old one, whole, or the new one, whole."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edgetune.errors import InputError, StorageError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it takes `path`'s place, synced, when the block ends without error.

    Raises:
        StorageError: the disk is full or the folder can't be written to; what stood at `path` before is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    with storage_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            put_in_place(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` to fill; it takes `path`'s place, synced, when the block ends without error.

    What stood at `path` before goes away as a whole; whether it may is the caller's to check. A mount can't be moved:
    there the files take their places one by one.

    Raises:
        StorageError: as `atomic_path`.
    """
    path = path.absolute()
    mount = os.path.ismount(path)
    beside = path if mount else path.parent
    temporary, old = (beside / f".{path.name}.{os.getpid()}.{word}" for word in ("new", "old"))
    with storage_errors(path):
        try:
            temporary.mkdir(parents=True)
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    _sync(file)
            if mount:
                for file in temporary.iterdir():
                    os.replace(file, path / file.name)
                return
            if path.exists():
                os.replace(path, old)
            os.replace(temporary, path)
            _sync_folder(path.parent)
        except BaseException:
            if old.exists() and not path.exists():
                os.replace(old, path)
            raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)


def put_in_place(temporary: Path, path: Path) -> None:
    """Let a file written whole take the place of `path`, synced. Errors are the system's; see `storage_errors`."""
    _sync(temporary)
    os.replace(temporary, path)
    _sync_folder(path.parent)


def read_at(handle: int, buffer: memoryview, start: int) -> int:
    """Fill `buffer` (bytes) from byte `start` of an open file, whatever else reads it; less only at the file's end.

    Nothing is mapped: what was read costs no memory but the buffer.

    Returns:
        Bytes read.
    """
    done = 0
    while done < len(buffer):
        count = os.preadv(handle, [buffer[done:]], start + done)
        if not count:
            break
        done += count
    return done


def write_at(handle: int, content: memoryview, start: int) -> None:
    """Write all of `content` (bytes) from byte `start` of an open file on."""
    done = 0
    while done < len(content):
        done += os.pwrite(handle, content[done:], start + done)


def sha256(path: Path) -> str:
    """Digest of a file, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system says about a write into one sentence.

    Raises:
        StorageError: the disk is full, or the folder can't be written to.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path} could not be written ({error.strerror or error}): free some space or choose another folder;"
            " what was there before is untouched."
        ) from error


def write_atomically(path: Path, content: bytes) -> None:
    """Put `content` at `path`; see `atomic_path`."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def _sync(file: Path) -> None:
    """Bring a file to the disk, with the permissions of any new one."""
    with open(file, "rb+") as handle:
        with suppress(OSError):  # some writers make their files private; and some file systems have no permissions
            os.fchmod(handle.fileno(), 0o666 & ~_umask())
        os.fsync(handle.fileno())


def _umask() -> int:
    """The permissions this process withholds from new files; they can only be read by setting them."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut; not every file system can, which is no reason to fail."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


@contextmanager
def held_folder(path: Path, use: str) -> Iterator[None]:
    """Keep other processes from using an output folder meanwhile; it is made if it isn't there.

    The system lets go of it with the process, however that ends.

    Args:
        path: the folder.
        use: what another process would be doing in it ("being trained in"), for the sentence.

    Raises:
        InputError: another process has it, it is a file, or it can't be made.
    """
    if path.exists() and not path.is_dir():
        raise InputError(f"--out {path} is a file; name a folder.")
    try:
        path.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise InputError(f"--out {path} can't be made ({error.strerror}); choose another folder.") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise InputError(f"--out {path} is {use} by another process; wait for it, or choose another folder.") from None
    except OSError:
        pass  # a file system without locks
    try:
        yield
    finally:
        os.close(handle)


def append_line(path: Path, line: bytes) -> None:
    """Add a line to a log, on disk before this returns; after a torn line, on one of its own.

    Raises:
        StorageError: see `storage_errors`.
    """
    with storage_errors(path), open(path, "ab+") as log:
        log.seek(0, os.SEEK_END)
        if log.tell():
            log.seek(-1, os.SEEK_END)
            torn = log.read(1) != b"\n"
            log.write(b"\n" if torn else b"")
        log.write(line + b"\n")
        log.flush()
        os.fsync(log.fileno())
