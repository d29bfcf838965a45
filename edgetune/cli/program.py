"""The program: its commands, and what becomes of errors."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from edgetune.__about__ import __version__
from edgetune.cli import board, results, training
from edgetune.errors import EdgetuneError

app = typer.Typer(
    name="edgetune",
    help="Fine-tune vision transformers on the device you have, inside the memory, energy and time you give it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (
    board.profile,
    training.plan,
    training.fit,
    results.evaluate,
    results.predict,
    results.export,
    results.bench,
):
    app.command()(command)
app.command()(board.selftest)
app.command()(board.models)
app.command(name="sample-data")(board.sample_data)
app.add_typer(board.devices_app, name="devices")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"edgetune {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    del version, debug  # listed for --help; `main` reads --debug, since that is where errors end up


def main() -> None:
    """Entry point: run a command; an error becomes one sentence and its exit code. `--debug` may stand anywhere."""
    debug = "--debug" in sys.argv
    try:
        app(args=[argument for argument in sys.argv[1:] if argument != "--debug"])
    except EdgetuneError as error:
        if debug:
            raise
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        sys.exit(130)
    except Exception as error:
        if debug:
            raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        typer.echo(
            f"error: a defect in edgetune ({reason}); run it again with --debug and report the output.", err=True
        )
        sys.exit(1)
