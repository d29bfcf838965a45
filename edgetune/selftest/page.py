"""The report as a page: what was tried, what came of it, and what to do with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgetune.schema import Selftest

if TYPE_CHECKING:
    from rich.console import Console

_MARKS = {True: ("passed", "green"), False: ("failed", "bold red"), None: ("not tried", "dim")}


def print_selftest(report: Selftest, written: Path | None, console: Console | None = None) -> None:
    """Print the page; `written` is the file that holds all of it."""
    from rich.console import Console as RichConsole
    from rich.table import Table
    from rich.text import Text

    console = console or RichConsole(highlight=False)
    console.print()
    console.print(Text(report.profile.board.name, style="bold cyan"))
    versions = [f"{name} {version}" for name, version in report.versions.items() if version]
    console.print(Text(" · ".join([f"edgetune {report.edgetune_version}", *versions]), style="dim"))
    console.print()
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(style="dim", overflow="fold")
    for check in report.checks:
        word, style = _MARKS[check.passed]
        table.add_row(Text(word, style=style), check.name, check.detail)
    console.print(table)
    console.print()
    not_tried = len(report.checks) - report.passed - report.failed
    console.print(f"{report.passed} passed, {report.failed} failed, {not_tried} not tried. Nothing was sent anywhere.")
    if written is not None:
        console.print(f"written: {written}. It names no user, host or serial number; attach it to a report.")
    else:
        console.print("With --out selftest.json the whole report is written, to be attached to an issue.")
