"""What tests of several rooms use."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from edgetune import cli

BOARDS = Path(__file__).parent / "fixtures" / "devices"
# An sdist comes without the board trees (see pyproject.toml), and so without the tests that read them.
collect_ignore = [] if BOARDS.is_dir() else ["device", "profile/test_boards.py", "profile/test_profile.py"]


class Ended(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def edgetune(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Run a command line in this process."""

    def run(*arguments: str | Path) -> Ended:
        monkeypatch.setattr(sys, "argv", ["edgetune", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as ending:
            code = int(ending.code or 0)
        captured = capsys.readouterr()
        return Ended(code, captured.out, captured.err)

    return run
