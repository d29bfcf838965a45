"""Commands about machines, models and samples: what there is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgetune.cli import flags
from edgetune.cli.output import print_json
from edgetune.errors import InputError

devices_app = typer.Typer(help="The board catalogue.", no_args_is_help=True)


def profile(
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the profile here.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Shorter probes, under 20 s.")] = False,
    root: Annotated[Path | None, typer.Option(metavar="DIR", help="Read another file-system root; no probes.")] = None,
    power: flags.Power = None,
    json: flags.Json = False,
) -> None:
    """Say what this machine is and has: limits, sensors, speed."""
    from edgetune import schema
    from edgetune.profile import profile_device
    from edgetune.units import parse_power

    found = profile_device(root=root, quick=quick, power_w=None if power is None else parse_power(power))
    if out is not None:
        schema.save(found, out)
    if json:
        print_json(found)
        return
    from edgetune.profile.page import print_profile

    print_profile(found)
    if out is not None:
        typer.echo(f"written: {out}")


def selftest(
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the report here.")] = None,
    json: flags.Json = False,
) -> None:
    """Try edgetune on this machine: a report to send us. Nothing is sent by itself."""
    from edgetune import schema
    from edgetune.selftest import run_selftest

    found = run_selftest(lambda what: typer.echo(f"{what} …", err=True))
    if out is not None:
        schema.save(found, out)
    if json:
        print_json(found)
    else:
        from edgetune.selftest.page import print_selftest

        print_selftest(found, out)
    raise typer.Exit(1 if found.failed else 0)


def models() -> None:
    """List the models edgetune knows by name."""
    from edgetune.model.registry import find_spec, list_models

    for name in list_models():
        spec = find_spec(name)
        typer.echo(f"{name:40} {spec.image_size:4} px  {spec.parameter_count / 1e6:6.1f} M weights")


def sample_data(
    name: Annotated[str, typer.Argument(metavar="NAME", help="digits")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make.")],
) -> None:
    """Write a bundled data set as an image folder."""
    from edgetune.data.samples import unpack

    if out.is_dir() and any(out.iterdir()):
        raise InputError(f"{out} holds something already; choose another folder.")
    unpack(name, out)
    typer.echo(f"written: {out}")


@devices_app.command(name="list")
def devices_list() -> None:
    """List the boards of the catalogue."""
    from edgetune.device.catalogue import load_catalogue

    for name, entry in sorted(load_catalogue().items()):
        typer.echo(f"{name:24} {entry.name}")


@devices_app.command(name="show")
def devices_show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="From `edgetune devices list`.")],
    json: flags.Json = False,
) -> None:
    """Show what the catalogue knows of a board."""
    from edgetune.device.catalogue import find_entry
    from edgetune.device.page import print_entry

    entry = find_entry(name)
    if json:
        print_json(entry)
    else:
        print_entry(entry)
