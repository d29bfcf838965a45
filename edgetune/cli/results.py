"""Commands on what a run left, and the benchmark."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer

from edgetune.cli import flags
from edgetune.cli.output import print_json
from edgetune.errors import InputError


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
        print_json(evaluation)
    else:
        print_evaluation(evaluation)


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
        print_json(predictions)
    else:
        print_predictions(predictions)


def export(
    run: Annotated[
        str, typer.Argument(metavar="RUN|MODEL", help="A run folder, a plan file (train-onnx), or a model's name.")
    ],
    out: Annotated[Path, typer.Option(metavar="PATH", help="File (onnx) or folder (the others) to write.")],
    format: Annotated[
        str, typer.Option(metavar="NAME", help="onnx, onnx-int8, train-onnx, ort-training or timm.")
    ] = "onnx",
    weights: flags.Weights = None,
) -> None:
    """Hand the best checkpoint of a run on; ONNX is compared with torch on real images before it is kept."""
    from edgetune.export import export as run_export

    report = run_export(run, format, out, weights=None if weights is None else Path(weights))
    typer.echo(report.sentence)


def _leave(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def bench(
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The benchmark's folder; a cut-off one is gone on with.")
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(metavar="A.json B.json", help="Compare two bench.json files instead.")
    ] = None,
    workload: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="w1 to w4; or --data and --model. field5: the field's table of costs."),
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
        str | None, typer.Option(metavar="A,B", help="Methods of fit, peers, names of --recipe; ours, peers or all.")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Methods under other arguments; JSON or TOML.")
    ] = None,
    repetitions: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Runs of each method.", show_default="3")
    ] = None,
    evaluate_steps: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="Evaluate every N steps, outside the figures; 0: only at the end."),
    ] = None,
    power: flags.Power = None,
    root: flags.Root = None,
) -> None:
    """Compare methods side by side, each run in a process of its own."""
    settled: dict[str, object] = {"--data": data, "--model": model, "--weights": weights, "--methods": methods}
    settled |= {"--recipe": recipe, "--image-size": image_size, "--batch-size": batch_size, "--epochs": epochs}
    settled |= {"--threads": threads, "--augment": augment, "--flip": flip, "--seed": seed, "--power": power}
    settled |= {"--evaluate-steps": evaluate_steps, "--root": root}
    given = [flag for flag, value in settled.items() if value is not None]
    if compare is not None:
        from edgetune.bench.compare import Comparison
        from edgetune.files import write_atomically

        more = {"--workload": workload, "--repetitions": repetitions}
        given += [flag for flag, value in more.items() if value is not None]
        if given:
            raise InputError(f"--compare reads two finished benchmarks: leave out {', '.join(given)}.")
        compared = Comparison(*compare)
        typer.echo(compared.markdown())
        if out is not None:
            write_atomically(out / "compare.md", compared.markdown().encode())
            write_atomically(out / "compare.html", compared.html().encode())
            typer.echo(f"written: {out / 'compare.md'}, {out / 'compare.html'}")
        return
    if out is None:
        raise InputError("--out is missing: name the benchmark's folder, for example --out runs/bench.")
    signal.signal(signal.SIGTERM, _leave)  # as an exception, which ends the run under way too
    if workload == "field5":
        from edgetune.bench.field5 import field5_markdown, run_field5

        if given:
            raise InputError(f"--workload field5 has settled that already: leave out {', '.join(given)}.")
        typer.echo(field5_markdown(run_field5(out, typer.echo, repetitions=3 if repetitions is None else repetitions)))
        return
    from edgetune.bench import bench as run_bench
    from edgetune.units import parse_power

    found = run_bench(
        out,
        methods=None if methods is None else methods.split(","),
        recipe=recipe,
        repetitions=3 if repetitions is None else repetitions,
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
        evaluate_steps=evaluate_steps,
        power_w=None if power is None else parse_power(power),
        root=root,
    )
    from edgetune.bench.page import print_bench

    print_bench(found)
    typer.echo(f"written: {', '.join(str(out / name) for name in ('bench.json', 'bench.html', 'bench.md'))}")
