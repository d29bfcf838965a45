"""The series of runs: every method in a fresh process, interleaved, one line in `runs.jsonl` for each that ended.

Within a repetition all methods see the same seed: the same images in the same order from the same weights, as crops
drawn alike, but for a method that caches features of plain images, which the record says. Their order moves on by one
from repetition to repetition, so that no method is always the first on a cool machine. A series that was cut off goes
on where it was; a run that failed is tried again then, and what was run under another recipe is left aside.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from edgetune import schema
from edgetune.bench.entries import PEERS, find_entries, is_peer, read_recipes
from edgetune.bench.html import bench_page
from edgetune.bench.machine import Bystanders, describe_machine, measure_idle, temperatures
from edgetune.bench.page import markdown
from edgetune.bench.process import Measured, measure_gemm, run_fit, run_peer, tidy
from edgetune.bench.records import DIGESTS, Bench, Entry, Run, Settings
from edgetune.bench.summary import summarise
from edgetune.bench.workloads import Job, choose, prepare
from edgetune.device.system import System
from edgetune.device.throttle import delta, read_throttle, throttled
from edgetune.errors import EdgetuneError, InputError
from edgetune.files import append_line, held_folder, storage_errors, write_atomically
from edgetune.model.registry import find_spec
from edgetune.units import format_size

_COMPARED = frozenset(("compare.md", "compare.html"))
_OWN = _COMPARED | {
    *("data", "weights.safetensors", "settings.json", "runs.jsonl", "runs", "bench.json", "bench.md", "bench.html"),
}
_MARK = ".edgetune-bench"  # in a folder that is a benchmark's from its start on: what it holds may be made anew
_NO_CAP = "1000TB"  # the eager loop's plan is read for its recipe only


class Series:
    """The runs of one benchmark.

    Args:
        job: what all methods share.
        entries: the methods.
        out: the benchmark's folder.
        say: shows a line to the user.
        root: where sensors are read; None: this machine.
    """

    def __init__(
        self, job: Job, entries: Sequence[Entry], out: Path, say: Callable[[str], None], root: Path | None = None
    ) -> None:
        self.job, self.entries, self.out, self.say = job, list(entries), out.absolute(), say
        self.log = self.out / "runs.jsonl"
        self._root = root.absolute() if root is not None else None
        self._system = System() if root is None else System(root)
        self._machine = describe_machine(self._system)

    def run(self, repetitions: int, keep: Callable[[list[Run]], object]) -> list[Run]:
        """Run what has no good line yet; all runs of these entries, failed ones included, and earlier ones of others.

        Args:
            repetitions: of each entry.
            keep: sees the runs known so far after each new one.
        """
        total = repetitions * len(self.entries)
        log = read_runs(self.log)
        for repetition in range(repetitions):
            for place, entry in enumerate(rotated(self.entries, repetition)):
                number = f"{repetition * len(self.entries) + place + 1}/{total} {entry.name}"
                if any(_is(run, entry, repetition) and run.figures is not None for run in log):
                    self.say(f"{number}: done before")
                    continue
                run = self._run(entry, repetition, place)
                self._append(run)
                log.append(run)
                self.say(f"{number}: {sentence(run)}")
                keep(self._latest(log, repetitions))
        return self._latest(log, repetitions)

    def _latest(self, log: Sequence[Run], repetitions: int) -> list[Run]:
        """The last run of each entry and repetition, entry by entry; then what ran here before under other names."""
        shown = _with_earlier(self.entries, log)
        last = {
            (index, run.repetition): run
            for run in log
            for index, entry in enumerate(shown)
            if run.repetition < repetitions and _is(run, entry, run.repetition)
        }
        return [last[key] for key in sorted(last)]

    def command(self, entry: Entry, repetition: int, data: str, weights: str | None, out: str) -> list[str]:
        """The command line of one run, after `edgetune`. For a peer: what plans its data and rates."""
        settings, peer = self.job.settings, PEERS.get(entry.method)
        words = ["plan" if peer else "fit", data, "--model", settings.model]
        words += ["--weights", weights] if weights else []
        words += ["--image-size", str(settings.image_size), "--batch-size", str(settings.batch_size)]
        words += ["--epochs", str(settings.epochs), "--evaluate-every", str(settings.epochs)]
        words += ["--threads", str(settings.threads), "--workers", "0", "--seed", str(settings.seed + repetition)]
        words += ([] if settings.flip else ["--no-flip"]) if settings.augment else ["--no-augment"]
        words += ["--evaluate-steps", str(settings.evaluate_steps)] if settings.evaluate_steps else []
        words += ["--power", f"{settings.power_w:g}W"] if settings.power_w is not None else []
        words += ["--method", peer.plan_method if peer else entry.method, *entry.arguments]
        if peer:
            return [*words, "--memory", _NO_CAP, "--out", out]
        words += ["--root", str(self._root)] if self._root else []
        return [*words, "--quiet", "--out", out]

    def _run(self, entry: Entry, repetition: int, place: int) -> Run:
        folder = self.out / "runs" / f"{entry.name}-{repetition}"
        with storage_errors(folder):
            shutil.rmtree(folder, ignore_errors=True)
            folder.parent.mkdir(parents=True, exist_ok=True)
        idle_w = measure_idle(self._system, self.job.settings.power_w)
        gemm_flops = measure_gemm(self.job.settings.threads)
        bystanders, before = Bystanders(), read_throttle(self._system)
        measured: Measured | None = None
        error: str | None = None
        try:
            measured = self._measure(entry, repetition, folder)
            warnings = tuple(map(self._without_paths, measured.figures.warnings))
            measured = measured._replace(figures=msgspec.structs.replace(measured.figures, warnings=warnings))
        except EdgetuneError as reason:
            error = self._without_paths(str(reason))
        others_share = bystanders.share()
        tidy(folder)
        settings = self.job.settings
        words = self.command(entry, repetition, "DATA", settings.weights, "OUT")
        shown = self._without_paths("edgetune " + shlex.join(words))
        if is_peer(entry):
            variables = "".join(f"{name}={value} " for name, value in entry.environment.items())
            shown += f" && {variables}python -m {PEERS[entry.method].module} {entry.method} OUT FIGURES"
        after, gemm_after_flops = read_throttle(self._system), measure_gemm(settings.threads)
        return Run(
            entry=entry,
            repetition=repetition,
            place=place,
            seed=settings.seed + repetition,
            command=shown,
            total_s=measured.total_s if measured else None,
            others_share=others_share,
            throttled=throttled(delta(before, after)),
            figures=measured.figures if measured else None,
            error=error,
            machine=self._machine,
            created=schema.now(),
            idle_w=idle_w,
            gemm_flops=gemm_flops,
            temperatures_mc=temperatures(before, after),
            gemm_after_flops=gemm_after_flops,
        )

    def _measure(self, entry: Entry, repetition: int, folder: Path) -> Measured:
        data, weights = str(self.job.data), str(self.job.weights) if self.job.weights else None
        if is_peer(entry):
            plan = folder / "plan.json"
            words = self.command(entry, repetition, data, weights, str(plan))
            return run_peer(words, entry, plan, folder / "figures.json", self._root)
        words = self.command(entry, repetition, data, weights, str(folder))
        return run_fit(words, entry.environment, folder, self.job.settings.epochs)

    def _without_paths(self, text: str) -> str:
        """A sentence for the record, which says nothing of how this machine's folders are called."""
        places = {str(self.job.data): "DATA", str(self.out): "OUT"}
        if self._root and self._root != Path("/"):
            places[str(self._root)] = "ROOT"
        if self.job.weights:
            places = {str(self.job.weights): self.job.weights.name} | places
        for path in sorted(places, key=len, reverse=True):
            text = re.sub(rf"{re.escape(path)}(?![\w.-])", places[path], text)
        return text

    def _append(self, run: Run) -> None:
        append_line(self.log, msgspec.json.encode(run))


def bench(
    out: Path,
    *,
    methods: Sequence[str] | None = None,
    recipe: Path | None = None,
    repetitions: int = 3,
    say: Callable[[str], None] = lambda line: None,
    workload: str | None = None,
    data: Path | None = None,
    model: str | None = None,
    weights: Path | None = None,
    root: Path | None = None,
    **settings: Any,
) -> Bench:
    """Compare methods side by side, and leave `bench.json`, `.md` and `.html`, `runs.jsonl` and the runs' folders.

    Args:
        out: a folder; one that holds the same benchmark, cut off or with fewer methods or repetitions, is gone on with.
        methods: names of methods and of recipes; None: the usual ones and all recipes.
        recipe: a file of recipes, see `edgetune.bench.entries`.
        repetitions: of every method.
        say: shows a line to the user.
        workload: "w1" to "w4"; None: `data` and `model` say.
        data: an image folder.
        model: timm name of a plain ViT.
        weights: a `.safetensors` file.
        root: where sensors are read, another file-system root; None: this machine.
        **settings: what else all methods share, see `edgetune.bench.workloads.prepare`.

    Raises:
        InputError: something given can't be used, `out` holds another benchmark, or no run ended well.
        MissingDependencyError: a peer's package is needed and not installed.
        StorageError: `out` can't be written to.
    """
    if repetitions < 1:
        raise InputError(f"--repetitions {repetitions} is too small; give 1 or more.")
    if root is not None and not root.is_dir():
        raise InputError(f"--root {root} is no folder; give the top of a file-system tree.")
    chosen = choose(workload, data=data, model=model, weights=weights)
    recipes = read_recipes(recipe) if recipe is not None else {}
    entries = find_entries(methods, recipes, find_spec(chosen.model))
    _refuse_foreign(out)
    with held_folder(out, "being written to"):
        _refuse_other(out / "settings.json", {"workload": workload, "model": chosen.model})  # before anything is made
        with _marked(out):
            job = prepare(out, workload, chosen, data=data, weights=weights, **settings)
        if root is not None:
            job = job._replace(settings=msgspec.structs.replace(job.settings, sensors=root.resolve().name or "/"))
        _keep_settings(out / "settings.json", job.settings)
        return _bench(job, entries, out, repetitions, say, root)


@contextmanager
def _marked(out: Path) -> Iterator[None]:
    """Say that a folder is a benchmark's while its images are made; where they can't be, it is nobody's again."""
    with storage_errors(out):
        (out / _MARK).touch()
    try:
        yield
    except BaseException:
        if not (out / "settings.json").exists() and not (out / "data").exists():
            (out / _MARK).unlink(missing_ok=True)
            with suppress(OSError):  # it holds something
                out.rmdir()
        raise


def _bench(
    job: Job, entries: list[Entry], out: Path, repetitions: int, say: Callable[[str], None], root: Path | None
) -> Bench:
    def keep(runs: list[Run]) -> Bench:
        made = summarise(job.settings, _with_earlier(entries, runs), runs, repetitions)
        schema.save(made, out / "bench.json")
        write_atomically(out / "bench.md", markdown(made).encode())
        write_atomically(out / "bench.html", bench_page(made).encode())
        return made

    runs = Series(job, entries, out, say, root).run(repetitions, keep)
    made = keep(runs)
    names = {entry.name for entry in entries}
    ours = [run for run in runs if run.entry.name in names]
    if not any(run.figures for run in ours):
        raise InputError(f"every run failed; the first: {ours[0].error}")
    return made


def rotated(entries: Sequence[Entry], repetition: int) -> list[Entry]:
    """The order of a repetition: each begins with another method."""
    start = repetition % len(entries)
    return [*entries[start:], *entries[:start]]


def _with_earlier(entries: Sequence[Entry], runs: Sequence[Run]) -> list[Entry]:
    """The methods asked for, then others that ended well in the same folder before: nothing measured is lost."""
    names = {entry.name for entry in entries}
    earlier = {run.entry.name: run.entry for run in runs if run.figures is not None and run.entry.name not in names}
    return [*entries, *earlier.values()]


def recipe_of(entry: Entry) -> tuple[str, str, tuple[str, ...], tuple[tuple[str, str], ...]]:
    """What makes two runs of one repetition the same; a note does not."""
    return entry.name, entry.method, entry.arguments, tuple(sorted(entry.environment.items()))


def read_runs(path: Path) -> list[Run]:
    """The lines of a log, oldest first; a line torn by a power cut, or of another version, is no run."""
    runs = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            runs.append(msgspec.json.decode(line, type=Run))
        except msgspec.DecodeError:  # a ValidationError is one
            continue
    return runs


def _is(run: Run, entry: Entry, repetition: int) -> bool:
    return run.repetition == repetition and recipe_of(run.entry) == recipe_of(entry)


def sentence(run: Run) -> str:
    """How a run went, for the terminal."""
    figures = run.figures
    if figures is None:
        return f"failed: {run.error}"
    peak, epoch_s = figures.above_baseline_bytes, figures.epoch_s
    said = f"{epoch_s:.3g} s per epoch, {format_size(peak)} above baseline"
    return said + ("" if figures.accuracy is None else f", accuracy {figures.accuracy:.1%}")


def _refuse_foreign(out: Path) -> None:
    """Leave alone a folder that is not a benchmark's.

    Raises:
        InputError: `out` is a file, or holds something else.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; name a folder.")
    names = {path.name for path in out.iterdir()} if out.exists() else set()
    own = _OWN if names & {"settings.json", _MARK} else _COMPARED  # else `data` and `runs` are somebody's
    foreign = [name for name in names if name not in own and name[0] != "."]
    if foreign:
        raise InputError(f"--out {out} holds {sorted(foreign)[0]}, which is no benchmark's; name a new folder.")


def _keep_settings(path: Path, settings: Settings) -> None:
    """Remember what this folder's runs have in common.

    Raises:
        InputError: they have something else in common.
    """
    _refuse_other(path, {name: getattr(settings, name) for name in Settings.__struct_fields__})
    if not path.exists():
        write_atomically(path, schema.to_json(settings))


def _refuse_other(path: Path, wanted: dict[str, object]) -> None:
    """Make sure that a folder's runs, if it has any, are of these settings.

    Raises:
        InputError: one differs, or what is there can't be understood.
    """
    if not path.exists():
        return
    try:
        kept = msgspec.json.decode(path.read_bytes(), type=Settings)
    except msgspec.DecodeError as error:
        raise InputError(f"{path} can't be understood ({error}); choose another --out.") from None
    for name, value in wanted.items():
        before = getattr(kept, name)
        if before == value or (name in DIGESTS and None in (before, value)):  # an earlier version noted none
            continue
        if name in DIGESTS:
            raise InputError(
                f"{path.parent} holds a benchmark of other {DIGESTS[name]} of the same name; give the same ones, or"
                " another --out."
            )
        raise InputError(
            f"{path.parent} holds a benchmark with {name} {before}, not {value}; give the same options, or another"
            " --out."
        )
