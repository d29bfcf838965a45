"""`plan` and `fit`: one function each, whose signature is the command's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgetune.cli import flags
from edgetune.cli.output import print_json
from edgetune.errors import InfeasibleError, InputError

if TYPE_CHECKING:
    from edgetune.options import Options
    from edgetune.schema import Plan, Profile


def plan(
    data: flags.Data = None,
    model: flags.Model = None,
    weights: flags.Weights = None,
    profile: flags.Profile = None,
    memory: flags.Memory = None,
    energy: flags.Energy = None,
    time: flags.Time = None,
    disk: flags.Disk = None,
    power: flags.Power = None,
    epochs: flags.Epochs = None,
    batch_size: flags.Batch = None,
    image_size: flags.ImageSize = None,
    lr: flags.Rate = None,
    patience: flags.Patience = None,
    evaluate_every: flags.Evaluate = None,
    evaluate_steps: flags.EvaluateSteps = None,
    augment: flags.Augment = None,
    flip: flags.Flip = None,
    method: flags.Method = None,
    engine: flags.Engine = None,
    device: flags.Device = None,
    threads: flags.Threads = None,
    workers: flags.Workers = None,
    lever: flags.Lever = None,
    seed: flags.Seed = None,
    config: flags.Config = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the plan here.")] = None,
    elsewhere: Annotated[
        bool, typer.Option("--elsewhere", help="The profile is of the board that will run it.")
    ] = False,
    root: flags.Root = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page with the trade-off here.")] = None,
    costs: Annotated[bool, typer.Option("--costs", help="Show what a step takes, block by block.")] = False,
    json: flags.Json = False,
) -> None:
    """Say what `fit` would do under the caps, what it would cost, and why. Trains nothing."""
    from edgetune import schema

    options = _options(locals(), config)
    made, _ = _planned_anew(options, elsewhere=elsewhere, json=json, sensors=_system(root))
    if out is not None:
        schema.save(made, out)
    if html is not None:
        from edgetune.report import write_plan_page

        write_plan_page(made, html)
    _show(made, json=json, costs=costs)
    if json:
        return
    for written in (out, html):
        if written is not None:
            typer.echo(f"written: {written}")


def fit(
    data: flags.Data = None,
    model: flags.Model = None,
    weights: flags.Weights = None,
    profile: flags.Profile = None,
    memory: flags.Memory = None,
    energy: flags.Energy = None,
    time: flags.Time = None,
    disk: flags.Disk = None,
    power: flags.Power = None,
    epochs: flags.Epochs = None,
    batch_size: flags.Batch = None,
    image_size: flags.ImageSize = None,
    lr: flags.Rate = None,
    patience: flags.Patience = None,
    evaluate_every: flags.Evaluate = None,
    evaluate_steps: flags.EvaluateSteps = None,
    augment: flags.Augment = None,
    flip: flags.Flip = None,
    method: flags.Method = None,
    engine: flags.Engine = None,
    device: flags.Device = None,
    threads: flags.Threads = None,
    workers: flags.Workers = None,
    lever: flags.Lever = None,
    seed: flags.Seed = None,
    config: flags.Config = None,
    plan: Annotated[str | None, typer.Option(metavar="FILE", help="From `edgetune plan --out`.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="RUN", help="The run folder.")] = None,
    graphs: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="From `edgetune export --format train-onnx`: plan, weights, graphs."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    json: Annotated[bool, typer.Option("--json", help="With --dry-run: print the plan as JSON, nothing else.")] = False,
    root: flags.Root = None,
    save_every: Annotated[str, typer.Option(metavar="T", help="Time between states within an epoch.")] = "10min",
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
) -> None:
    """Fine-tune under the caps."""
    values = dict(locals())
    from edgetune.units import parse_duration

    save_every_s = parse_duration(save_every, "--save-every")
    system = _system(root)
    if out is None and not dry_run:
        raise InputError("--out is missing: name the run folder, for example --out runs/first.")
    if json and not dry_run:
        raise InputError("--json prints the plan of a --dry-run; a run leaves its JSON in --out.")
    if resume and out is not None:
        options = _options(values, None)
        others = [name for name in ("config", "plan", "graphs", "dry_run") if values[name]]
        _refuse([*_given(options, "power", "engine"), *others], "--resume")
        from edgetune.train.fit import planned_engine
        from edgetune.train.fit import resume as resume_fit

        wanted = _engine(options.engine)
        if planned_engine(out, wanted) == "onnx":
            _hand_over(out, root, options.power_w, save_every_s, quiet, engine=wanted)
        result = resume_fit(
            out,
            power_w=options.power_w,
            save_every_s=save_every_s,
            quiet=quiet,
            started=_process_start(),
            system=system,
            engine=wanted,
        )
        _finish(result, out, quiet)
        return
    options = _options(values, config)
    if graphs is not None:
        from edgetune.train.onnx.exported import plan_of

        _refuse(_given(options, "data", "profile", "power"), f"--graphs {graphs}")
        made = plan_of(graphs, options.data, None if plan is None else Path(plan), system)
        found = _profile_of_here(options)
    elif plan is not None:
        made = _planned(Path(plan), options)
        found = _profile_of_here(options)
    else:
        made, found = _planned_anew(options, json=json, sensors=_system(root))  # its own: warnings are not the run's
    if dry_run or out is None:
        _show(made, json=json)
        return
    import msgspec

    from edgetune.train.fit import fit as run_fit

    merged = {name: value for name, value in msgspec.structs.asdict(options).items() if value is not None}
    if made.engine == "onnx":
        _hand_over(
            out,
            root,
            options.power_w,
            save_every_s,
            quiet,
            plan=made,
            profile=found,
            config=merged,
            graphs=None if graphs is None else str(graphs),
        )
    result = run_fit(
        made,
        out,
        profile=found,
        config=merged,
        graphs=graphs,
        power_w=options.power_w,
        save_every_s=save_every_s,
        quiet=quiet,
        started=_process_start(),
        system=system,
    )
    _finish(result, out, quiet)


# --- between the flags and the rooms ----------------------------------------------------------------------------------


def _options(values: dict[str, Any], config: Path | None) -> Options:
    """The options among a command's arguments, merged with a config file."""
    from edgetune.options import Options, merge_options

    return merge_options(config, {name: values[name] for name in Options.__struct_fields__})


def _given(options: Options, *free: str) -> list[str]:
    """Names of the options that were given, except `free` ones."""
    return [name for name in options.__struct_fields__ if name not in free and getattr(options, name) is not None]


def _engine(name: str | None) -> Any:
    """The engine that is to go on with a run; None: the one that began it."""
    if name not in (None, "auto", "torch", "onnx"):
        raise InputError(f"--engine {name} is unknown; use auto, torch or onnx.")
    return None if name == "auto" else name


def _read_profile(options: Options) -> Profile | None:
    from edgetune import schema

    return None if options.profile is None else schema.load(Path(options.profile), schema.Profile)


def _profile_of_here(options: Options) -> Profile | None:
    """The profile, where it is this board's."""
    found = _read_profile(options)
    if found is not None:
        from edgetune.plan.machine import refuse_other_board

        refuse_other_board(found)
    return found


def _planned_anew(
    options: Options, *, elsewhere: bool = False, json: bool = False, sensors: Any = None
) -> tuple[Plan, Profile | None]:
    """The plan of the options, and the profile it was made with; where none fits, `json` prints what would."""
    from edgetune.plan import make_plan

    found = _read_profile(options)
    try:
        return make_plan(profile=found, elsewhere=elsewhere, sensors=sensors, **options.planner_arguments()), found
    except InfeasibleError as error:
        if json:
            print_json({"schema": "edgetune/plan/1", "error": str(error), "nearest_feasible": error.nearest})
        raise


def _show(made: Plan, *, json: bool, costs: bool = False) -> None:
    if json:
        print_json(made)
        return
    from edgetune.plan.explain import print_plan

    print_plan(made, costs=costs)


def _planned(path: Path, options: Options) -> Plan:
    """The plan of --plan, after making sure that no other option contradicts it."""
    from edgetune import schema

    made = schema.load(path, schema.Plan)
    if options.data is None or Path(options.data).resolve() != Path(made.data.path).resolve():
        raise InputError(f"--plan {path} was made for the DATA {made.data.path}; give that folder, or plan anew.")
    _refuse(options.conflicts(made), f"--plan {path}")
    return made


def _refuse(names: list[str], winner: str) -> None:
    flags = ["DATA" if name == "data" else "--" + name.replace("_", "-") for name in sorted(names)]
    if flags:
        raise InputError(f"{winner} has settled that already: leave out {', '.join(flags)}.")


def _system(root: Path | None) -> Any:
    """Where sensors are read.

    Raises:
        InputError: there is no such folder.
    """
    from edgetune.device.system import System

    if root is not None and not root.is_dir():
        raise InputError(f"--root {root} is no folder; name the root of a file system.")
    return System() if root is None else System(root)


def _process_start() -> float:
    """When this process began, on the monotonic clock: the user's --time runs from there."""
    import time

    import psutil

    return time.monotonic() - (time.time() - psutil.Process().create_time())


def _hand_over(
    out: Path, root: Path | None, power_w: float | None, save_every_s: float, quiet: bool, **plan: Any
) -> None:
    """Let a process without the command line's libraries do the run; comes back where this one is not the command's."""
    import sys

    from edgetune.train.onnx.run import Order, hand_over

    hand_over(
        Order(
            out=str(out),
            root=None if root is None else str(root),
            power_w=power_w,
            save_every_s=save_every_s,
            quiet=quiet,
            started=_process_start(),
            debug="--debug" in sys.argv,
            **plan,
        )
    )


def _finish(result: Any, out: Path, quiet: bool) -> None:
    from edgetune.train.fit import exit_code
    from edgetune.train.summary import print_result

    if not quiet:
        print_result(result, out)
    raise typer.Exit(exit_code(result))
