"""The engine without torch against the lean trainer: the same losses, and what a run costs with each.

    python benchmarks/onnx_engine.py equal --model tiny --method last-4 --steps 20  # both engines, step by step
    python benchmarks/onnx_engine.py turns --model tiny --method half --steps 40  # step times, a step of each in turns
    python benchmarks/onnx_engine.py run --engine onnx --model tiny --method half  # one run of `edgetune fit`
    python benchmarks/onnx_engine.py run --engine onnx --model tiny --method half --cold  # graphs not cached
    python benchmarks/onnx_engine.py capped --limit-mb 256 --model w1 --data W1 --weights FILE  # in a control group
    python benchmarks/onnx_engine.py accuracy  # of the runs of each engine on the same images, by seed
    python benchmarks/onnx_engine.py table

`--python` names the interpreter of an environment for `run` and `capped`, one without torch for instance. Models have
random weights but for nano, whose own come with the package; images are the bundled digits. One JSON line a run goes to
benchmarks/results/onnx_engine.jsonl.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from machine import append, lines
from turns import ratios, serve, take_turns

from edgetune import schema
from edgetune.schema import Plan

MODELS = {
    "nano": ("vit_nano_patch8_64", 64, 32),
    "tiny": ("vit_tiny_patch16_224", 224, 8),
    "deit-s": ("deit_small_patch16_224", 224, 4),
    "w1": ("vit_small_patch14_dinov2", 98, 32),
}
LEAN = ["trainer=lean", "precision=fp32", "saved_precision=fp32", "optimizer_state=fp32", "frozen_precision=fp32"]
UNCACHED = ["feature_cache=off", "frozen_weights=fp32", "part_tokens=800"]
HALF = ["trained_blocks=4", "token_min=0.5", "token_max=0.5", "feature_cache=off", "frozen_weights=disk"]
HELD_OUT = 64  # images, at least, that `equal` asks both engines about after their steps
METHODS: dict[str, tuple[str, list[str]]] = {
    "full": ("full", []),
    "last-4": ("last-4", []),
    "lora": ("lora", []),
    "alast": ("edgetune", ["trained_blocks=4", "k=2", "token_min=0.4", "token_max=0.8", *UNCACHED]),
    "half": ("edgetune", [*HALF, "saved_activations=recompute"]),
    "half-kept": ("edgetune", HALF),
    "recipe": ("edgetune", []),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("equal", "turns", "worker", "run", "capped", "accuracy", "table"))
    parser.add_argument("--engine", default="onnx", choices=("onnx", "torch"))
    parser.add_argument("--model", default="tiny", choices=MODELS)
    parser.add_argument("--method", default="last-4", choices=METHODS)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, help="default: the model's usual one")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="of `turns`, `run` and `capped`")
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--limit-mb", type=int, default=256)
    parser.add_argument("--beside", type=int, default=0, help="of `turns`: processes that keep a processor busy")
    parser.add_argument("--cold", action="store_true", help="of `run`: nothing is in the cache of graphs")
    parser.add_argument("--scratch", type=Path, help="of `worker`, which `turns` starts")
    options = parser.parse_args()
    if options.batch_size:
        MODELS[options.model] = (*MODELS[options.model][:2], options.batch_size)
    if options.what in ("table", "accuracy"):
        {"table": table, "accuracy": accuracies}[options.what]()
        return
    if options.what == "worker":
        worker(options, options.scratch)
        return
    with tempfile.TemporaryDirectory() as scratch:
        {"equal": equal, "turns": turns, "run": run, "capped": run}[options.what](options, Path(scratch))


def turns(options: argparse.Namespace, scratch: Path) -> None:
    """Steps of both engines by the same plan, in turns, each in a process of its own; a step's time and nothing else.

    Where the plan caches features, steps take random ones: what a later epoch does.
    """
    name, _, batch = MODELS[options.model]
    plan = _plan(options, scratch)
    schema.save(plan, scratch / "plan.json")
    command = [sys.executable, __file__, "worker", "--scratch", str(scratch), "--threads", str(options.threads)]
    command += ["--model", options.model, "--method", options.method, "--batch-size", str(batch), "--engine"]
    with _busy(options.beside):
        found = take_turns({engine: [*command, engine] for engine in ("torch", "onnx")}, options.steps)
    record = {"what": "turns", "model": name, "method": options.method, "batch_size": batch, "beside": options.beside}
    record |= {"plan": _settings(plan)}
    record |= {"levers": METHODS[options.method][1], "threads": options.threads, "engines": found}
    append("onnx_engine", record)
    median, low, high = ratios(found["onnx"]["steps_s"], of=found["torch"]["steps_s"])
    print(f"onnx by torch, {options.steps} rounds: {median:.2f} [{low:.2f}, {high:.2f}]")


@contextlib.contextmanager
def _busy(processes: int) -> Iterator[None]:
    """Processes that do nothing but use a processor each."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def worker(options: argparse.Namespace, scratch: Path) -> None:
    """One engine's side of `turns`."""
    import numpy as np

    from edgetune.data.loader import Batch
    from edgetune.measure import PeakMeter

    _, side, batch = MODELS[options.model]
    plan = for_engine(schema.load(scratch / "plan.json", Plan), options.engine)
    starter = _starter(options.engine)
    if options.engine == "torch":
        from edgetune.allocator import settle_allocators

        settle_allocators(plan)
    meter = PeakMeter.start(lambda: starter.warm_up(plan))
    engine = _engine(starter, plan, scratch / f"run-{options.engine}")
    rng = np.random.default_rng(options.seed)
    shape: tuple[int, ...] = (batch, 3, side, side)
    if plan.feature_cache is not None:
        shape = (batch, plan.feature_cache.tokens, engine.spec.width)
    taken = Batch(rng.standard_normal(shape, np.float32), rng.integers(0, 10, batch), np.arange(batch))
    serve(
        lambda: engine.train_step(taken, 1e-5, plan.micro_batch_size),
        lambda: (meter.peak_bytes() or 0) - (meter.baseline_bytes or 0),
    )


def _starter(engine: str) -> Any:
    """What starts an engine."""
    return importlib.import_module(f"edgetune.train.{'torch_start' if engine == 'torch' else 'onnx.start'}")


def for_engine(plan: Any, engine: str) -> Any:
    """The same plan for another engine."""
    return msgspec.structs.replace(plan, engine=engine)


def _settings(plan: Any) -> dict[str, Any]:
    """What decides a step, for the record."""
    from edgetune.plan.job import levers_of

    return {"micro_batch_size": plan.micro_batch_size, "saved": plan.saved_activations, "k": plan.k} | {
        name: value for name, value in msgspec.structs.asdict(levers_of(plan)).items() if value is not None
    }


def _engine(starter: Any, plan: Any, folder: Path) -> Any:
    from edgetune.train.folder import RunFolder

    return starter.start_engine(plan, RunFolder(folder), None, None, resume=False)[0]


def equal(options: argparse.Namespace, scratch: Path) -> None:
    """The same batches through both engines, from the same weights, by the same plan."""
    import numpy as np

    from edgetune.data.loader import Batch

    name, side, batch = MODELS[options.model]
    options.threads = 1  # for the numbers alone
    plan = _plan(options, scratch)
    plans = {engine: for_engine(plan, engine) for engine in ("onnx", "torch")}
    engines: dict[str, Any] = {}
    for engine in ("torch", "onnx"):
        starter = _starter(engine)
        starter.warm_up(plans[engine])
        engines[engine] = _engine(starter, plans[engine], scratch / engine)
    rng = np.random.default_rng(options.seed)
    centres = rng.standard_normal((10, 3, 1, 1), np.float32)  # so that there is something to learn
    found: dict[str, list[float]] = {"onnx": [], "torch": []}
    same = 0

    def drawn() -> Batch:
        labels = rng.integers(0, 10, batch)
        images = rng.standard_normal((batch, 3, side, side), np.float32) + centres[labels]
        return Batch(images, labels, np.arange(batch))

    for _ in range(options.steps):
        taken = drawn()
        reports = {engine: made.train_step(taken, 2e-4, plan.micro_batch_size) for engine, made in engines.items()}
        for engine, report in reports.items():
            found[engine].append(report.loss)
        same += (reports["onnx"].trained, reports["onnx"].kept) == (reports["torch"].trained, reports["torch"].kept)
    unseen = [drawn() for _ in range(-(-HELD_OUT // batch))]
    answers = {engine: made.evaluate(unseen, plan.micro_batch_size, lambda: False) for engine, made in engines.items()}
    away = [abs(ours - theirs) for ours, theirs in zip(found["onnx"], found["torch"], strict=True)]
    relative = [gap / max(1e-9, theirs) for gap, theirs in zip(away, found["torch"], strict=True)]
    record = {
        "what": "equal",
        "model": name,
        "method": options.method,
        "levers": METHODS[options.method][1],
        "batch_size": batch,
        "steps": options.steps,
        "largest_difference": max(away),
        "largest_difference_20": max(away[:20]),
        "mean_relative_difference": statistics.fmean(relative),
        "steps_with_the_same_draw_and_tokens": same,
        "held_out": len(unseen) * batch,
        "accuracy": {engine: evaluation.accuracy for engine, evaluation in answers.items()},
        "same_answers": sum(map(int.__eq__, answers["onnx"].predictions, answers["torch"].predictions)),
        "losses": {engine: [round(value, 6) for value in values] for engine, values in found.items()},
    }
    append("onnx_engine", record)
    print(json.dumps({key: value for key, value in record.items() if key != "losses"}))


def _plan(options: argparse.Namespace, scratch: Path) -> Any:
    """One plan, of the lean trainer in fp32: either engine trains by it as it stands."""
    from edgetune.plan import make_plan

    (method, levers), (name, side, batch) = METHODS[options.method], MODELS[options.model]
    return make_plan(
        _data(scratch, 160, 16),
        model=name,
        weights=options.weights or _weights(name, side),
        image_size=side,
        batch_size=batch,
        method=method,
        engine="torch",
        levers=[*levers, *LEAN],
        threads=options.threads,
        epochs=1,
        seed=options.seed,
    )


def run(options: argparse.Namespace, scratch: Path) -> None:
    """One run of `edgetune fit` in a process of its own, in a control group where a limit is asked for."""
    (method, levers), (name, side, batch) = METHODS[options.method], MODELS[options.model]
    data = options.data or _data(scratch, 160, 16)
    weights = options.weights or _weights(name, side)
    if options.engine == "torch":
        levers = [*levers, *LEAN]
    out = scratch / "run"
    command = [options.python, "-m", "edgetune", "fit", str(data), "--model", name, "--engine", options.engine]
    command += ["--out", str(out), "--image-size", str(side), "--batch-size", str(batch), "--quiet"]
    command += ["--threads", str(options.threads)]
    command += ["--epochs", str(options.epochs), "--no-flip", "--method", method, "--seed", str(options.seed)]
    command += ["--weights", str(weights)] if weights else []
    for lever in levers:
        command += ["--lever", lever]
    capped = options.what == "capped"
    limit = options.limit_mb << 20 if capped else None
    started, first_s = time.perf_counter(), None
    cache = {"XDG_CACHE_HOME": str(scratch / "cache")} if options.cold else {}
    group = _group(limit)
    with group as enter:
        process = subprocess.Popen([*enter, *command], cwd=scratch, env=os.environ | cache)
        while process.poll() is None:
            if first_s is None and (out / "metrics.jsonl").exists() and (out / "metrics.jsonl").stat().st_size:
                first_s = time.perf_counter() - started
            time.sleep(0.01)
    record: dict[str, Any] = {
        "what": options.what,
        "engine": options.engine,
        "model": name,
        "method": options.method,
        "levers": levers,
        "data": options.data.name if options.data else None,
        "batch_size": batch,
        "epochs": options.epochs,
        "threads": options.threads,
        "seed": options.seed,
        "status": process.returncode,
        "first_step_s": first_s,
        "limit_bytes": limit,
        "group_peak_bytes": group.peak_bytes,
        "cold": options.cold,
        "torch_installed": _has_torch(options.python),
        "installed_bytes": _installed_bytes(options.python),
    }
    if (out / "result.json").exists():
        result = json.loads((out / "result.json").read_text())
        steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        seconds = [batch / step["images_per_s"] for step in steps if step.get("kind") == "step"]
        record |= {
            "step_s": statistics.median(seconds[2:] or seconds),
            "fastest_step_s": min(seconds),
            **result["memory"],
            "accuracy": result["accuracy"]["last"],
            "stopped_by": result["stopped_by"],
            "epochs_s": result["time"]["epochs_s"],
        }
    append("onnx_engine", record)
    print(json.dumps(record))


class _group:  # noqa: N801 - used as a function
    """A control group (version 1) with a limit on memory; gives the words that put a command into it."""

    def __init__(self, limit_bytes: int | None) -> None:
        self._limit = limit_bytes
        self.peak_bytes: int | None = None  # page cache included
        self._path = Path("/sys/fs/cgroup/memory") / f"edgetune-{os.getpid()}"

    def __enter__(self) -> list[str]:
        if self._limit is None:
            return []
        self._path.mkdir()
        (self._path / "memory.limit_in_bytes").write_text(str(self._limit))
        return ["sh", "-c", f'echo $$ > {self._path}/cgroup.procs && exec "$@"', "sh"]

    def __exit__(self, *exception: object) -> None:
        if self._limit is not None:
            self.peak_bytes = int((self._path / "memory.max_usage_in_bytes").read_text())
            self._path.rmdir()


def _weights(name: str, side: int) -> Path | None:
    """Random weights of a model, made once; None for the model that has its own."""
    if name == MODELS["nano"][0]:
        return None
    path = Path(tempfile.gettempdir()) / f"edgetune-random-{name}.safetensors"
    if not path.exists():
        import torch

        from edgetune.model.registry import find_spec
        from edgetune.model.vit import VisionTransformer, initialise
        from edgetune.model.weights import save_weights

        torch.manual_seed(1)
        model = VisionTransformer(find_spec(name).at(side, 10))
        initialise(model)
        save_weights(path, model, {})
    return path


def _data(scratch: Path, train: int, val: int) -> Path:
    """The first bundled digits of each class, as an image folder."""
    from edgetune.data.samples import unpack

    folder = scratch / "data"
    if not folder.exists():
        unpack("digits", scratch / "all")
        for part, count in (("train", train), ("val", val)):
            for label in (scratch / "all" / part).iterdir():
                (folder / part / label.name).mkdir(parents=True)
                for image in sorted(label.iterdir())[: max(1, count // 10)]:
                    shutil.copy(image, folder / part / label.name)
    return folder


def _has_torch(python: str) -> bool:
    code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('torch') is None)"
    return subprocess.run([python, "-c", code], check=False).returncode == 0


def _installed_bytes(python: str) -> int:
    """Bytes on disk of the environment's packages, pip and setuptools left out."""
    code = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    folder = Path(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip())
    return sum(
        path.lstat().st_blocks * 512
        for path in folder.rglob("*")
        if path.is_file() and not path.relative_to(folder).parts[0].startswith(("pip", "setuptools"))
    )


def table() -> None:
    """Markdown: equal losses (the last line of each kind), runs, steps in turns."""
    print("| model | batch | method | steps | largest difference, 20 | all steps | mean, relative | accuracy | same |")
    print("|---|---:|---|---:|---:|---:|---:|---:|---:|")
    for line in _latest("equal", ("model", "method", "steps")):
        if line["steps_with_the_same_draw_and_tokens"] != line["steps"]:
            raise SystemExit(f"{line['model']}, {line['method']}: not the same draw and tokens in every step")
        accuracy = line.get("accuracy", {})
        shown = " and ".join(dict.fromkeys(f"{value:.1%}" for value in accuracy.values()))
        print(
            f"| {line['model']} | {line['batch_size']} | {line['method']} | {line['steps']} |"
            f" {line['largest_difference_20']:.1e} | {line['largest_difference']:.1e} |"
            f" {line['mean_relative_difference']:.1e} | {shown} | {line.get('same_answers', '')} |"
        )
    print(
        "\n| engine | model | method | runs | process peak, MB | bare, MB | step, s (low to high) | to first step, s |"
    )
    print("|---|---|---|---:|---:|---:|---:|---:|")
    runs = [line for line in lines("onnx_engine") if line["what"] in ("run", "capped") and "step_s" in line]
    keys = ("engine", "model", "method", "torch_installed")
    kinds = dict.fromkeys((*(line[key] for key in keys), line.get("cold", False)) for line in runs)
    for kind in kinds:
        ours = [x for x in runs if (*(x[key] for key in keys), x.get("cold", False)) == kind]
        ours = [line for line in ours if line["machine"]["commit"][:7] == ours[-1]["machine"]["commit"][:7]]
        peak, bare, step, first = (
            statistics.median(line[key] for line in ours)
            for key in ("measured_peak_bytes", "baseline_bytes", "step_s", "first_step_s")
        )
        steps = sorted(line["step_s"] for line in ours)
        where = "".join(text for text, true in ((", no torch", not kind[3]), (", cold", kind[4])) if true)
        print(
            f"| {kind[0]}{where} | {kind[1]} | {kind[2]} | {len(ours)} | {peak / 1e6:.1f} |"
            f" {bare / 1e6:.1f} | {step:.3f} ({steps[0]:.3f} to {steps[-1]:.3f}) | {first:.1f} |"
        )

    print("\n| model | method | beside | rounds | onnx by torch, medians of each series | all rounds [95 %] |")
    print("|---|---|---:|---:|---|---:|")
    # earlier lines are of a plan for each engine, alike but made twice
    series = [line for line in lines("onnx_engine") if line["what"] == "turns" and "plan" in line]
    for turn in dict.fromkeys((line["model"], line["method"], line["beside"]) for line in series):
        ours = [line["engines"] for line in series if (line["model"], line["method"], line["beside"]) == turn]
        took = {name: [second for line in ours for second in line[name]["steps_s"]] for name in ("onnx", "torch")}
        median, low, high = ratios(took["onnx"], of=took["torch"])
        each = [ratios(line["onnx"]["steps_s"], of=line["torch"]["steps_s"])[0] for line in ours]
        print(
            f"| {' | '.join(map(str, turn))} | {len(took['onnx'])} | {', '.join(f'{value:.2f}' for value in each)} |"
            f" {median:.2f} [{low:.2f}, {high:.2f}] |"
        )


def accuracies() -> None:
    """Markdown: last epoch's accuracy by engine and seed, of the plans that both engines have run on data of a name."""
    runs = [line for line in lines("onnx_engine") if line.get("data") and line.get("accuracy") is not None]
    kinds = dict.fromkeys((line["model"], line["method"], line["data"], line["epochs"]) for line in runs)
    print("| model | plan | engine | seeds | accuracy | mean | process peak, MB | control group |")
    print("|---|---|---|---:|---|---:|---:|---:|")
    for kind in kinds:
        for engine in ("onnx", "torch"):
            ours = {
                line["seed"]: line
                for line in runs
                if (line["model"], line["method"], line["data"], line["epochs"], line["engine"]) == (*kind, engine)
            }
            if not ours:
                continue
            found = [ours[seed]["accuracy"] for seed in sorted(ours)]
            limit = next(iter(ours.values()))["limit_bytes"]
            peak = max(line["measured_peak_bytes"] for line in ours.values())
            print(
                f"| {kind[0]} | {kind[1]} | {engine} | {len(found)} | {', '.join(f'{value:.1%}' for value in found)} |"
                f" {statistics.fmean(found):.1%} | {peak / 1e6:.1f} |"
                f" {'' if limit is None else f'{limit >> 20} MiB'} |"
            )


def _latest(what: str, keys: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """The last line of each kind."""
    found = {tuple(line[key] for key in keys): line for line in lines("onnx_engine") if line["what"] == what}
    yield from found.values()


if __name__ == "__main__":
    main()
