"""Errors a person can act on: one sentence that names the file or the flag and says what to do.

The command line prints the sentence and exits with the class's code; anything else is a defect and exits with 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from edgetune.schema import NearestFeasible


class EdgetuneError(Exception):
    """Base of every error edgetune raises on purpose. `exit_code` is the process's exit status."""

    exit_code: ClassVar[int] = 1


class InputError(EdgetuneError):
    """Something given to edgetune (a flag, a file, a folder) can't be used."""

    exit_code = 2


class MissingDependencyError(InputError):
    """A command needs a package that is not installed; the message carries the pip line."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs {package}, which is not installed: run `pip install 'edgetune[{extra}]'`.")


class StorageError(InputError):
    """A file or folder given for output can't be written."""


class DivergedError(InputError):
    """The loss stopped being a number; the last good checkpoint is kept. The learning rate is the usual reason."""


class InfeasibleError(EdgetuneError):
    """No plan fits the caps."""

    exit_code = 3

    def __init__(self, message: str, nearest: NearestFeasible) -> None:
        super().__init__(message)
        self.nearest = nearest
