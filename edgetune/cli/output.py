"""What commands print."""

from __future__ import annotations

from typing import Any

import typer


def print_json(record: Any) -> None:
    """An artifact as `--json` prints it."""
    from edgetune.schema import to_json

    typer.echo(to_json(record).decode(), nl=False)
