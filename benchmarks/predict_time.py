"""Predicted beside measured time of an epoch: random plans, each run by `edgetune fit` in a fresh process.

    python benchmarks/predict_time.py run --series design --seconds 170
    python benchmarks/predict_time.py run --series held-out --count 60 --seconds 170
    python benchmarks/predict_time.py table --series held-out

Plans are drawn as `predict_memory.py` draws them, from the series' name and a number: four models from nano to ViT-B,
four image sizes each, both trainers, any lever, a batch of 1 to 64, a memory cap or none; batches are halved until
two steps of full training would take no more than twice `--epoch-s` at `USUAL_FLOPS`. Images are JPEGs of smoothed
noise, one of four sizes. An epoch holds as many steps as should take about `--epoch-s` (1 s in series up to
`held-out-3`, whose lines do not say it), up to 40 a second of it; three epochs are run, and the first one fills the
cache where the plan has one. A plan whose epochs are foreseen to take `MOST_LONGER` times as long is not run:
products in bf16 where the processor is slow at them took ten minutes each, and nobody plans those. docs/planner.md
says which series the time model was designed on.

The profile is made by `edgetune profile` (all probes) before the first plan and after every `--profile-every`, and
every line says which one it was. Run it with nothing else running, or under `taskset` on a core of its own,
`--threads` to match: processor time that others took on the cores this process may use is recorded (those that gave
way, being niced, apart), a profile is made again and a plan run again (three times at most) where they were more than
`MOST_OTHERS`, and the table leaves such runs out and says how many. A shared machine's speed drifts besides, so the
rate of a matrix product just before each fit is recorded beside that at the time of the profile; no figure is
corrected by it.

`run` ends before a plan that would begin after `--seconds`; call it again to go on. Profiles, plans and logs stay in
`--keep`; one line per plan goes to `results/predict_time.jsonl`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from machine import append, lines
from PIL import Image
from predict_memory import WRITE_WEIGHTS, Case, draw, edgetune

from edgetune import schema
from edgetune.errors import EdgetuneError, InfeasibleError
from edgetune.model.registry import find_spec
from edgetune.plan import make_plan
from edgetune.plan.job import job_of
from edgetune.plan.work import forward_flops, work_per_image
from edgetune.schema import Plan, Profile

NAME = "predict_time"
EPOCHS, CLASSES, DISTINCT_IMAGES = 3, 4, 8
USUAL_FLOPS = 60e9
SIDES = (96, 256, 512, 1024)  # of the images, in pixels
MOST_OTHERS, TRIES = 0.15, 3  # cores
MOST_LONGER = 8


class Profiled(NamedTuple):
    """A profile and what the machine was like when it was made."""

    profile: Profile
    path: Path
    number: int
    reference_flops: float
    others_cores: float


class Others:
    """Cores that other processes kept busy while the block ran; children that ended within it are ours."""

    def __enter__(self) -> Others:
        self._began, self._all, self._ours = time.monotonic(), _machine_s(), _our_s()
        return self

    def __exit__(self, *exception: object) -> None:
        (busy, niced), wall = _machine_s(), time.monotonic() - self._began
        self.cores = max(0.0, (busy - self._all[0] - (_our_s() - self._ours)) / wall)
        self.niced_cores = (niced - self._all[1]) / wall


def _machine_s() -> tuple[float, float]:
    """Time that the processors we may use have worked, with what the host took away; and on niced processes."""
    ours = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    busy = niced = 0.0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name in ours:
            user, nice, system, _, _, irq, soft_irq, steal = (
                int(field) / os.sysconf("SC_CLK_TCK") for field in fields[:8]
            )
            busy += user + system + irq + soft_irq + steal
            niced += nice
    return busy, niced


def _our_s() -> float:
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def reference_flops(seconds: float = 0.4) -> float:
    """Rate of one matrix product, now: the median over so many seconds."""
    square = np.ones((768, 768), np.float32)
    found: list[float] = []
    began = time.perf_counter()
    while time.perf_counter() - began < seconds or len(found) < 5:
        start = time.perf_counter()
        square @ square
        found.append(2 * 768**3 / (time.perf_counter() - start))
    return statistics.median(found)


def profiled_now(keep: Path, series: str, threads: int, every: int) -> Profiled:
    """The series' last profile, or where it has served so many plans, a new one made in a fresh process."""
    earlier = [line["profile"] for line in lines(NAME) if line["series"] == series and "profile" in line]
    number = max(earlier, default=1)
    number += earlier.count(number) >= every
    path, reference = keep / f"profile-{series}-{number}.json", keep / f"reference-{series}-{number}.json"
    for tried in range(TRIES):
        if reference.exists():
            break
        before = reference_flops()
        with Others() as others:
            made = edgetune("profile", "--out", str(path), threads=threads)
        if made.returncode:
            raise SystemExit(f"edgetune profile failed: {made.stderr}")
        print(f"profile {number}: others {others.cores:.2f} cores, niced {others.niced_cores:.2f}", flush=True)
        if others.cores <= MOST_OTHERS or tried == TRIES - 1:
            reference.write_text(json.dumps([(before + reference_flops()) / 2, others.cores]))
    flops, busy = json.loads(reference.read_text())
    return Profiled(schema.load(path, Profile), path, number, flops, busy)


def write_images(data: Path, train: int, val: int, side: int, seed: int) -> None:
    """JPEGs of smoothed noise; more than `DISTINCT_IMAGES` are links to those."""
    rng = np.random.default_rng(seed)
    kept = data / "distinct"
    for index in range(DISTINCT_IMAGES):
        coarse = rng.integers(0, 256, (side // 8, side // 8, 3), np.uint8)
        fine = np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC), np.int16)
        pixels = np.clip(fine + rng.integers(-8, 9, fine.shape), 0, 255).astype(np.uint8)
        kept.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(kept / f"{index}.jpg", quality=88)
    for part, count in (("train", train), ("val", val)):
        for index in range(count):
            folder = data / "images" / part / f"class-{index % CLASSES}"
            folder.mkdir(parents=True, exist_ok=True)
            os.link(kept / f"{index % DISTINCT_IMAGES}.jpg", folder / f"{index:05d}.jpg")


def drawn(series: str, number: int, epoch_s: float) -> Case:
    """The case of that number."""
    case = draw(f"time {series}", number)
    batch, spec = case.batch_size, find_spec(case.model).at(case.image_size)
    while batch > 1 and 2 * batch * 3 * forward_flops(spec) > 2 * epoch_s * USUAL_FLOPS:
        batch //= 2
    return case._replace(batch_size=batch)


def plan_of(case: Case, data: Path, weights: Path | None, profiled: Profiled, threads: int) -> Plan:
    """The plan of a case, under its cap."""
    options: dict[str, Any] = {
        "model": case.model,
        "method": case.method,
        "image_size": case.image_size,
        "batch_size": case.batch_size,
        "levers": case.levers,
        "threads": threads,
        "workers": 0,
        "engine": "torch",
        "epochs": EPOCHS,
        "weights": weights,
        "profile": profiled.profile,
    }
    if case.cap is not None:
        try:
            make_plan(data, memory_bytes=1 << 20, **options)
        except InfeasibleError as error:
            least, runtime = error.nearest.memory_bytes, profiled.profile.compute.runtime_bytes
            assert least is not None
            assert runtime is not None
            options["memory_bytes"] = int(runtime + case.cap * (least - runtime))
    return make_plan(data, **options)


def measure(
    case: Case, side: int, scratch: Path, profiled: Profiled, threads: int, keep: Path, name: str, epoch_s: float
) -> dict[str, Any]:
    """Plan, fit, compare."""
    data, out = scratch / "images", scratch / "run"
    weights = keep / f"{case.model}.safetensors"
    if not weights.exists():
        subprocess.run([sys.executable, "-c", WRITE_WEIGHTS, case.model, str(weights)], check=True)
    # how much work an image is decides how many there are; planning opens none
    for index in range(2 * CLASSES):
        folder = scratch / "tried" / ("train", "val")[index % 2] / f"class-{index // 2}"
        folder.mkdir(parents=True)
        (folder / "0.jpg").touch()
    each = work_per_image(job_of(plan_of(case, scratch / "tried", weights, profiled, threads))).total
    images = epoch_s * USUAL_FLOPS / each
    steps = min(round(40 * epoch_s), max(2, round(images / case.batch_size)))
    train = -(-steps * case.batch_size // CLASSES) * CLASSES
    write_images(scratch, train, CLASSES, side, 0)
    plan = plan_of(case, data, weights, profiled, threads)
    foreseen_s = plan.predicted.epoch_s or 0.0
    if foreseen_s > MOST_LONGER * epoch_s:
        return {"refused": f"an epoch of {foreseen_s:.0f} s is foreseen"}
    schema.save(plan, scratch / "plan.json")
    for _ in range(TRIES):
        if out.exists():
            shutil.rmtree(out)
        now = reference_flops()
        with Others() as others:
            done = edgetune(
                *("fit", str(data), "--plan", str(scratch / "plan.json"), "--profile", str(profiled.path)),
                *("--out", str(out), "--quiet"),
                threads=threads,
            )
        if others.cores <= MOST_OTHERS:
            break
    if done.returncode:
        return {"refused": done.stderr.strip()[-600:]}
    result = json.loads((out / "result.json").read_text())
    logged = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    first, later = schema.load(scratch / "plan.json", Plan).predicted, result["time"]["epochs_s"]
    assert first.epoch_s is not None
    calibrated = schema.load(out / "plan.json", Plan).calibrated
    for file in (scratch / "plan.json", out / "metrics.jsonl", out / "result.json"):
        (keep / f"{name}-{file.name}").write_bytes(file.read_bytes())
    return {
        "epoch_s": epoch_s,
        "trainer": plan.trainer,
        "cached": plan.feature_cache is not None,
        "micro_batch_size": plan.micro_batch_size,
        "allocator": plan.allocator,
        "steps_per_epoch": plan.steps_per_epoch,
        "train_images": train,
        "image_side": side,
        "predicted_epoch_s": first.epoch_s,
        "predicted_first_epoch_s": first.first_epoch_s,
        "predicted_total_s": first.total_s,
        "calibrated_total_s": None if calibrated is None else calibrated.total_s,
        "calibrated_after_steps": None if calibrated is None else calibrated.after_steps,
        "measured_epochs_s": later,
        "measured_total_s": result["time"]["total_s"],
        "eval_s": result["time"]["eval_s"],
        "step_images_per_s": [line["images_per_s"] for line in logged if line.get("kind") == "step"],
        "profile": profiled.number,
        "others_cores": others.cores,
        "niced_cores": others.niced_cores,
        "profile_others_cores": profiled.others_cores,
        "reference_flops": now,
        "profile_reference_flops": profiled.reference_flops,
        "error": EPOCHS * first.epoch_s / sum(later) - 1,
    }


def run(series: str, count: int, seconds: float, threads: int, keep: Path, epoch_s: float, every: int) -> None:
    """Run the plans of a series that have no line yet, as many as begin within `seconds`."""
    began = time.monotonic()
    keep.mkdir(parents=True, exist_ok=True)
    done = {line["number"] for line in lines(NAME) if line["series"] == series}
    for number in (number for number in range(count) if number not in done):
        profiled = profiled_now(keep, series, threads, every)
        if time.monotonic() - began > seconds:
            return
        case = drawn(series, number, epoch_s)
        side = random.Random(f"side {series} {number}").choice(SIDES)
        with tempfile.TemporaryDirectory() as scratch:
            try:
                record = measure(case, side, Path(scratch), profiled, threads, keep, f"{series}-{number}", epoch_s)
            except EdgetuneError as error:
                record = {"refused": str(error)}
        append(NAME, {"series": series, "number": number, "case": case.name, "threads": threads, **record})
        shown = (
            f"{record['error']:+.1%}, others {record['others_cores']:.2f}" if "error" in record else record["refused"]
        )
        print(f"{number:4} {case.name}, images of {side} px: {shown}", flush=True)


def first_error(line: dict[str, Any]) -> float:
    """Of the first epoch alone, which fills the cache."""
    return float(line["predicted_first_epoch_s"] / line["measured_epochs_s"][0] - 1)


def later_error(line: dict[str, Any]) -> float:
    """Of the epochs after it."""
    first, mean = line["predicted_first_epoch_s"], line["predicted_epoch_s"]
    rest = line["measured_epochs_s"][1:]
    return float((EPOCHS * mean - first) / sum(rest) - 1)


def table(series: str) -> None:
    """Markdown: the summary by kind of plan, then the worst ten."""
    records = {line["number"]: line for line in lines(NAME) if line["series"] == series}.values()
    ran = [line for line in records if "error" in line]
    found = [line for line in ran if max(line["others_cores"], line["profile_others_cores"]) <= MOST_OTHERS]
    columns = {"error": lambda line: line["error"], "first epoch": first_error, "later epochs": later_error}
    print("| plans | number | all epochs: median error | 95th percentile | first epoch | | later epochs | |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    groups = {
        "all": found,
        "lean trainer": [line for line in found if line["trainer"] == "lean"],
        "of them cached": [line for line in found if line["cached"]],
        "autograd": [line for line in found if line["trainer"] != "lean"],
        **{name: [line for line in found if line["case"].startswith(name)] for name in MODELS},
    }
    for name, group in groups.items():
        if group:
            cells = [cell for error in columns.values() for cell in _spread([error(line) for line in group])]
            print(f"| {name} | {len(group)} | {' | '.join(cells)} |")
    drifts = [abs(line["reference_flops"] / line["profile_reference_flops"] - 1) for line in found]
    corrected = [(1 + line["error"]) * line["profile_reference_flops"] / line["reference_flops"] - 1 for line in found]
    print(f"\nA matrix product's rate before a fit and at its profile: {' and '.join(_spread(drifts))} apart; errors")
    print(f"with that taken out: {' and '.join(_spread(corrected))} (median, 95th percentile).")
    print(
        f"{len(records) - len(ran)} of {len(records)} draws were refused and ran nothing; {len(ran) - len(found)} are"
    )
    print(f"left out, because others kept more than {MOST_OTHERS:g} cores busy meanwhile.\n")
    # a run that was nearly over by then foretells nothing
    longer = [line for line in found if line.get("calibrated_total_s")]
    longer = [line for line in longer if 3 * line["calibrated_after_steps"] <= EPOCHS * line["steps_per_epoch"]]
    if longer:
        foretold, after = _spread([line["predicted_total_s"] / line["measured_total_s"] - 1 for line in longer])
        print(f"Runs of at least three times as many steps as `fit` calibrates by, {len(longer)}: foretold within")
        print(f"{foretold} and {after} (median, 95th percentile) before they began, after those steps within")
        said = _spread([line["calibrated_total_s"] / line["measured_total_s"] - 1 for line in longer])
        print(f"{' and '.join(said)}.\n")
    print("| worst plans | predicted s | measured s | error |\n|---|---:|---:|---:|")
    for line in sorted(found, key=lambda line: -abs(line["error"]))[:10]:
        measured = sum(line["measured_epochs_s"]) / EPOCHS
        print(
            f"| {line['number']}: {line['case']}, images of {line['image_side']} px"
            f" | {line['predicted_epoch_s']:.2f} | {measured:.2f} | {line['error']:+.0%} |"
        )


MODELS = ("vit_nano", "vit_tiny", "vit_small", "vit_base")


def _spread(errors: list[float]) -> list[str]:
    """Median and 95th percentile of the magnitudes."""
    ranked = sorted(map(abs, errors))
    return [f"{statistics.median(ranked):.1%}", f"{ranked[min(len(ranked) - 1, int(0.95 * len(ranked)))]:.1%}"]


def main() -> None:
    """Parse and dispatch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("--series", default="design", help="a name: plans are drawn from it and a number")
    running.add_argument("--count", type=int, default=60)
    running.add_argument("--seconds", type=float, default=float("inf"), help="begin no plan after so many")
    running.add_argument("--threads", type=int, default=2)
    running.add_argument("--epoch-s", type=float, default=4.0, help="that an epoch should take, about")
    running.add_argument("--profile-every", type=int, default=8, metavar="PLANS")
    running.add_argument("--keep", type=Path, default=Path("runs/predict_time"))
    showing = commands.add_parser("table")
    showing.add_argument("--series", default="held-out")
    arguments = parser.parse_args()
    if arguments.command == "run":
        run(
            arguments.series,
            arguments.count,
            arguments.seconds,
            arguments.threads,
            arguments.keep,
            arguments.epoch_s,
            arguments.profile_every,
        )
    else:
        table(arguments.series)


if __name__ == "__main__":
    main()
