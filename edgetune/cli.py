"""The command line: one function per command, its signature is the command's. No logic lives here.

Nothing heavy is imported before the command that needs it runs.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgetune import flags
from edgetune.__about__ import __version__
from edgetune.errors import EdgetuneError, InfeasibleError, InputError

if TYPE_CHECKING:
    from edgetune.options import Options
    from edgetune.schema import Plan, Profile

app = typer.Typer(
    name="edgetune",
    help="Fine-tune vision transformers on the device you have, inside the memory, energy and time you give it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
devices_app = typer.Typer(help="The board catalogue.", no_args_is_help=True)
app.add_typer(devices_app, name="devices")


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


@app.command()
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
        _print_json(found)
        return
    from edgetune.profile.page import print_profile

    print_profile(found)
    if out is not None:
        typer.echo(f"written: {out}")


@app.command()
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
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page with the trade-off here.")] = None,
    json: flags.Json = False,
) -> None:
    """Say what `fit` would do under the caps, what it would cost, and why. Trains nothing."""
    from edgetune import schema

    options = _options(locals(), config)
    try:
        made, _ = _make_plan(options, elsewhere=elsewhere)
    except InfeasibleError as error:
        if json:
            _print_json({"schema": "edgetune/plan/1", "error": str(error), "nearest_feasible": error.nearest})
        raise
    if out is not None:
        schema.save(made, out)
    if html is not None:
        from edgetune.report import write_plan_page

        write_plan_page(made, html)
    if json:
        _print_json(made)
        return
    from edgetune.plan.explain import print_plan

    print_plan(made)
    for written in (out, html):
        if written is not None:
            typer.echo(f"written: {written}")


@app.command()
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
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    save_every: Annotated[str, typer.Option(metavar="T", help="Time between states within an epoch.")] = "10min",
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
) -> None:
    """Fine-tune under the caps."""
    values = dict(locals())
    from edgetune.units import parse_duration

    save_every_s = parse_duration(save_every, "--save-every")
    if out is None and not dry_run:
        raise InputError("--out is missing: name the run folder, for example --out runs/first.")
    if resume and out is not None:
        options = _options(values, None)
        others = [name for name in ("config", "plan", "dry_run") if values[name]]
        _refuse([*_given(options, "power"), *others], "--resume")
        from edgetune.train.fit import resume as resume_fit

        result = resume_fit(
            out, power_w=options.power_w, save_every_s=save_every_s, quiet=quiet, started=_process_start()
        )
        _finish(result, out, quiet)
        return
    options = _options(values, config)
    if plan is not None:
        made = _planned(Path(plan), options)
        found = _read_profile(options)
        if found is not None:
            from edgetune.plan.machine import refuse_other_board

            refuse_other_board(found)
    else:
        made, found = _make_plan(options)
    if dry_run or out is None:
        from edgetune.plan.explain import print_plan

        print_plan(made)
        return
    import msgspec

    from edgetune.train.fit import fit as run_fit

    merged = {name: value for name, value in msgspec.structs.asdict(options).items() if value is not None}
    result = run_fit(
        made,
        out,
        profile=found,
        config=merged,
        power_w=options.power_w,
        save_every_s=save_every_s,
        quiet=quiet,
        started=_process_start(),
    )
    _finish(result, out, quiet)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Image folder; test/ is used where there is one.")],
    json: flags.Json = False,
) -> None:
    """Measure the best checkpoint of a run on labelled images."""
    from edgetune.infer import evaluate as run_evaluate
    from edgetune.infer import print_evaluation

    evaluation = run_evaluate(run, data)
    if json:
        _print_json(evaluation)
    else:
        print_evaluation(evaluation)


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.")],
    json: flags.Json = False,
) -> None:
    """Name the class of images with the best checkpoint of a run."""
    from edgetune.infer import predict as run_predict
    from edgetune.infer import print_predictions

    predictions = run_predict(run, images)
    if json:
        _print_json(predictions)
    else:
        print_predictions(predictions)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    out: Annotated[Path, typer.Option(metavar="PATH", help="File (onnx) or folder (timm) to write.")],
    format: Annotated[str, typer.Option(metavar="NAME", help="onnx, onnx-int8 or timm.")] = "onnx",
) -> None:
    """Hand the best checkpoint of a run on; ONNX is compared with torch on real images before it is kept."""
    from edgetune.export import export as run_export

    report = run_export(run, format, out)
    typer.echo(report.sentence)


@app.command()
def bench(
    out: Annotated[Path, typer.Option(metavar="DIR", help="The benchmark's folder; a cut-off one is gone on with.")],
    workload: Annotated[
        str | None, typer.Option(metavar="NAME", help="w1, w2, w3 or w4; or --data and --model.")
    ] = None,
    data: Annotated[Path | None, typer.Option(metavar="DIR", help="Image folder, as for fit.")] = None,
    model: flags.Model = None,
    weights: flags.Weights = None,
    image_size: flags.ImageSize = None,
    batch_size: flags.Batch = None,
    epochs: flags.Epochs = None,
    threads: flags.Threads = None,
    augment: flags.Augment = None,
    flip: flags.Flip = None,
    seed: flags.Seed = None,
    methods: Annotated[
        str | None, typer.Option(metavar="A,B", help="Methods of fit, eager-full[-trimmed|-fused], names of --recipe.")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Methods under other arguments; JSON or TOML.")
    ] = None,
    repetitions: Annotated[int, typer.Option(min=1, metavar="N", help="Runs of each method.")] = 3,
) -> None:
    """Compare methods side by side, each run in a process of its own."""
    from edgetune.bench import bench as run_bench

    found = run_bench(
        out,
        methods=None if methods is None else methods.split(","),
        recipe=recipe,
        repetitions=repetitions,
        say=typer.echo,
        workload=workload,
        data=data,
        model=model,
        weights=None if weights is None else Path(weights),
        image_size=image_size,
        batch_size=batch_size,
        epochs=epochs,
        threads=threads,
        augment=augment,
        flip=flip,
        seed=seed or 0,
    )
    from edgetune.bench.page import print_bench

    print_bench(found)
    typer.echo(f"written: {out / 'bench.json'}, {out / 'bench.md'}")


@app.command()
def models() -> None:
    """List the models edgetune knows by name."""
    from edgetune.model.registry import find_spec, list_models

    for name in list_models():
        spec = find_spec(name)
        typer.echo(f"{name:40} {spec.image_size:4} px  {spec.parameter_count / 1e6:6.1f} M weights")


@app.command(name="sample-data")
def sample_data(
    name: Annotated[str, typer.Argument(metavar="NAME", help="digits")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make.")],
) -> None:
    """Write a bundled data set as an image folder."""
    from edgetune.data.samples import unpack

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
        _print_json(entry)
    else:
        print_entry(entry)


# --- between the flags and the rooms ----------------------------------------------------------------------------------


def _options(values: dict[str, Any], config: Path | None) -> Options:
    """The options among a command's arguments, merged with a config file."""
    from edgetune.options import Options, merge_options

    return merge_options(config, {name: values[name] for name in Options.__struct_fields__})


def _given(options: Options, *free: str) -> list[str]:
    """Names of the options that were given, except `free` ones."""
    return [name for name in options.__struct_fields__ if name not in free and getattr(options, name) is not None]


def _read_profile(options: Options) -> Profile | None:
    from edgetune import schema

    return None if options.profile is None else schema.load(Path(options.profile), schema.Profile)


def _make_plan(options: Options, *, elsewhere: bool = False) -> tuple[Plan, Profile | None]:
    from edgetune.plan import make_plan

    found = _read_profile(options)
    return make_plan(profile=found, elsewhere=elsewhere, **options.planner_arguments()), found


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


def _process_start() -> float:
    """When this process began, on the monotonic clock: the user's --time runs from there."""
    import time

    import psutil

    return time.monotonic() - (time.time() - psutil.Process().create_time())


def _finish(result: Any, out: Path, quiet: bool) -> None:
    from edgetune.train.fit import exit_code
    from edgetune.train.summary import print_result

    if not quiet:
        print_result(result, out)
    raise typer.Exit(exit_code(result))


def _print_json(record: Any) -> None:
    from edgetune.schema import to_json

    typer.echo(to_json(record).decode(), nl=False)


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


if __name__ == "__main__":
    main()
