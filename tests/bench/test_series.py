"""The series: real processes once, and what happens around them with processes that only pretend."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgetune.bench import bench, series
from edgetune.bench.process import Measured, execute
from edgetune.bench.records import Bench, Entry, Figures
from edgetune.bench.workloads import choose, prepare
from edgetune.errors import EdgetuneError, InputError
from edgetune.files import held_folder
from tests.bench.facts import Told, command, make_run

NANO: dict[str, Any] = {"model": "vit_nano_patch8_64", "image_size": 32, "batch_size": 6, "epochs": 2, "threads": 1}


def figures_of(told: Told, name: str) -> Figures:
    return next(run.figures for run in series.read_runs(told.out / "runs.jsonl") if run.entry.name == name)


# --- real processes ---------------------------------------------------------------------------------------------------


def test_eager_pytorch_and_our_full_walk_the_same_path(series: Told) -> None:
    eager, ours = figures_of(series, "eager-full"), figures_of(series, "full")
    assert len(eager.train_losses) == 2
    assert eager.train_losses == pytest.approx(ours.train_losses, abs=2e-5)
    assert eager.train_losses[0] != eager.train_losses[1]
    assert eager.accuracy == pytest.approx(ours.accuracy, abs=1.01 / 12)  # one image of twelve on the border
    assert eager.images == ours.images == 36
    assert eager.train_flops_per_image == pytest.approx(ours.train_flops_per_image, rel=1e-6)


def test_figures_are_measured(series: Told) -> None:
    for name in ("eager-full", "full"):
        figures = figures_of(series, name)
        # weights, gradients and two moments of 2.7 M parameters are there at the same time, in 4 bytes each
        assert figures.above_baseline_bytes > 2.7e6 * 4 * 2
        assert figures.above_baseline_bytes < 400 << 20
        assert all(0 < seconds < 60 for seconds in figures.epochs_s)
        assert len(figures.epochs_s) == 2


def test_a_failed_run_is_recorded_and_the_rest_goes_on(series: Told) -> None:
    rows = {row.entry.name: row for row in series.bench.methods}
    assert rows["starved"].runs == 0
    assert "the least that would do is --memory" in rows["starved"].errors[0]
    assert rows["starved"].above_baseline_bytes is None
    assert (rows["eager-full"].runs, rows["full"].runs) == (1, 1)
    assert rows["full"].to_eager.epoch > 0
    assert "failed" in series.printed
    assert any("starved" in warning for warning in series.bench.warnings)


def test_only_small_artifacts_are_kept(series: Told) -> None:
    left = {path.name for path in (series.out / "runs" / "full-0").iterdir()}
    assert {"plan.json", "result.json", "metrics.jsonl"} <= left
    assert not {name for name in left if name.endswith(".safetensors")} | left & {"state"}


def test_nothing_recorded_names_a_folder_of_this_machine(series: Told, photos: Path) -> None:
    for name in ("bench.json", "bench.md", "settings.json"):
        text = (series.out / name).read_text()
        assert str(photos.parent) not in text
        assert str(Path.cwd()) not in text


def test_going_on_repeats_only_what_failed(series: Told, photos: Path) -> None:
    before = (series.out / "runs.jsonl").read_text()
    line = command(photos, series.out, "--methods", "eager-full,full", "--repetitions", "1")
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert done.stdout.count("done before") == 2
    assert (series.out / "runs.jsonl").read_text() == before


def test_a_series_that_is_ended_goes_on_where_it_was(photos: Path, tmp_path: Path) -> None:
    line = command(photos, tmp_path / "out", "--methods", "head,last-1", "--repetitions", "1", "--seed", "1")
    log = tmp_path / "out" / "runs.jsonl"
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not log.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(1.0)  # into the next run, which is ended with it
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert len(series.read_runs(log)) == 1
    first = log.read_bytes()
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert "1/2 head: done before" in done.stdout
    assert log.read_bytes().startswith(first)
    assert [run.entry.name for run in series.read_runs(log) if run.figures] == ["head", "last-1"]


# --- pretended ones ---------------------------------------------------------------------------------------------------


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Runs that end at once; what was asked for, in order. A method called last-1 always fails."""
    asked: list[tuple[str, int]] = []

    def measure(self: series.Series, entry: Entry, repetition: int, folder: Path) -> Measured:
        asked.append((entry.name, repetition))
        if entry.method == "last-1":
            raise EdgetuneError(f"{self.job.data}/train/a.jpg and {folder} are out of luck")
        return Measured(make_run(entry.name).figures, 1.0)

    monkeypatch.setattr(series.Series, "_measure", measure)
    return asked


def test_methods_take_turns_and_none_is_always_first(
    pretend: list[tuple[str, int]], photos: Path, tmp_path: Path
) -> None:
    bench(tmp_path / "out", methods=["full", "head", "last-2"], data=photos, **NANO)
    assert pretend == [
        *[("full", 0), ("head", 0), ("last-2", 0)],
        *[("head", 1), ("last-2", 1), ("full", 1)],
        *[("last-2", 2), ("full", 2), ("head", 2)],
    ]


def test_more_repetitions_and_methods_are_added_to_what_is_there(
    pretend: list[tuple[str, int]], photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    bench(out, methods=["full"], repetitions=1, data=photos, **NANO)
    made = bench(out, methods=["full", "head"], repetitions=2, data=photos, **NANO)
    assert sorted(pretend) == [("full", 0), ("full", 1), ("head", 0), ("head", 1)]
    assert [row.runs for row in made.methods] == [2, 2]
    made = bench(out, methods=["last-2"], repetitions=1, data=photos, **NANO)
    assert {row.entry.name: row.runs for row in made.methods} == {"last-2": 1, "full": 1, "head": 1}


def test_a_failed_run_is_tried_again_and_its_old_error_forgotten(
    pretend: list[tuple[str, int]], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with pytest.raises(EdgetuneError, match=r"DATA/train/a\.jpg and OUT/runs/last-1-0 are out of luck"):
        bench(out, methods=["last-1"], repetitions=1, data=photos, **NANO)
    monkeypatch.setattr(series.Series, "_measure", lambda *_: Measured(make_run("last-1").figures, 1.0))
    made = bench(out, methods=["last-1"], repetitions=1, data=photos, **NANO)
    assert (made.methods[0].runs, made.methods[0].errors) == (1, [])


def test_what_is_known_is_written_after_every_run(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def measure(self: series.Series, entry: Entry, repetition: int, folder: Path) -> Measured:
        if repetition:
            raise KeyboardInterrupt
        return Measured(make_run(entry.name).figures, 1.0)

    monkeypatch.setattr(series.Series, "_measure", measure)
    with pytest.raises(KeyboardInterrupt):
        bench(out, methods=["full"], repetitions=2, data=photos, **NANO)
    kept = msgspec.json.decode((out / "bench.json").read_bytes(), type=Bench)
    assert [row.runs for row in kept.methods] == [1]
    assert "| full" in (out / "bench.md").read_text()


def test_another_recipe_of_the_same_name_is_run_anew(
    pretend: list[tuple[str, int]], photos: Path, tmp_path: Path
) -> None:
    recipe, out = tmp_path / "recipe.json", tmp_path / "out"
    for rate in ("1e-4", "1e-3", "1e-3"):
        recipe.write_text(msgspec.json.encode({"mine": {"method": "full", "arguments": ["--lr", rate]}}).decode())
        made = bench(out, methods=["mine"], recipe=recipe, repetitions=1, data=photos, **NANO)
    assert pretend == [("mine", 0), ("mine", 0)]
    assert made.methods[0].runs == 1


def test_a_torn_line_is_no_run(pretend: list[tuple[str, int]], photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    bench(out, methods=["full"], repetitions=2, data=photos, **NANO)
    log = out / "runs.jsonl"
    log.write_bytes(log.read_bytes()[:-40])
    made = bench(out, methods=["full"], repetitions=2, data=photos, **NANO)
    assert pretend == [("full", 0), ("full", 1), ("full", 1)]
    assert made.methods[0].runs == len(series.read_runs(log)) == 2


@pytest.mark.parametrize("change", [{"epochs": 3}, {"seed": 1}, {"flip": False}, {"root": Path("/")}])
def test_a_folder_keeps_to_its_benchmark(
    pretend: list[tuple[str, int]], photos: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    out = tmp_path / "out"
    bench(out, methods=["full"], repetitions=1, data=photos, **NANO)
    with pytest.raises(InputError, match="sensors" if "root" in change else next(iter(change))):
        bench(out, methods=["full"], repetitions=1, data=photos, **(NANO | change))
    assert len(pretend) == 1


def test_a_comparison_may_lie_in_a_benchmarks_folder(
    pretend: list[tuple[str, int]], photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    bench(out, methods=["full"], repetitions=1, data=photos, **NANO)
    for name in ("compare.md", "compare.html"):
        (out / name).write_text("A and B")
    assert bench(out, methods=["full"], repetitions=1, data=photos, **NANO).methods[0].runs == 1


def test_a_folder_of_something_else_is_left_alone(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(InputError, match=r"thesis\.tex"):
        bench(tmp_path, methods=["full"], data=photos, **NANO)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_what_malloc_inherits_is_the_methods_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")
    seen: list[dict[str, str]] = []

    def run(line: list[str], *, env: dict[str, str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        seen.append(env)
        return subprocess.CompletedProcess(line, 2, stderr=b"noise\nerror: --lr is wrong; use another.\n")

    monkeypatch.setattr(subprocess, "run", run)
    ended = execute(["edgetune", "fit"], {})
    execute(["edgetune", "fit"], {"MALLOC_MMAP_THRESHOLD_": "131072"})
    assert (ended.status, ended.said) == (2, "--lr is wrong; use another.")
    assert "MALLOC_TRIM_THRESHOLD_" not in seen[0]
    assert seen[1]["MALLOC_MMAP_THRESHOLD_"] == "131072"
    assert "PATH" in seen[0]


# --- the folder -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workload", ["w2", "w4"])
def test_a_folder_that_holds_somebodys_data_or_runs_is_left_alone(workload: str, tmp_path: Path) -> None:
    for name in ("data", "runs"):
        out = tmp_path / f"{workload}-{name}"
        (out / name / "cat").mkdir(parents=True)
        (out / name / "cat" / "1.jpg").write_text("all my work")
        with pytest.raises(InputError, match=rf"holds {name}, which is no benchmark's"):
            bench(out, workload=workload)
        assert (out / name / "cat" / "1.jpg").read_text() == "all my work"
        assert [path.name for path in out.iterdir()] == [name]


def test_another_workload_makes_nothing_in_a_benchmarks_folder(pretend: list[tuple[str, int]], tmp_path: Path) -> None:
    out = tmp_path / "out"
    bench(out, methods=["full"], repetitions=1, workload="w4")
    before = sorted(path.relative_to(out) for path in out.rglob("*"))
    with pytest.raises(InputError, match="with workload w4, not w2"):
        bench(out, methods=["full"], repetitions=1, workload="w2")
    assert sorted(path.relative_to(out) for path in out.rglob("*")) == before


def test_files_of_the_same_name_are_told_apart(pretend: list[tuple[str, int]], photos: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {**NANO, "methods": ["full"], "repetitions": 1}
    weights, out = tmp_path / "model.safetensors", tmp_path / "out"
    weights.write_bytes(b"one")
    bench(out, data=photos, weights=weights, **given)
    bench(out, data=photos, weights=weights, **given)  # the same again
    weights.write_bytes(b"two")
    with pytest.raises(InputError, match="other weights of the same name"):
        bench(out, data=photos, weights=weights, **given)
    weights.write_bytes(b"one")
    others = tmp_path / "elsewhere" / photos.name
    shutil.copytree(photos, others)
    image = next(path for path in sorted(others.rglob("*")) if path.is_file())
    image.write_bytes(image.read_bytes() + b" ")
    with pytest.raises(InputError, match="other images of the same name"):
        bench(out, data=others, weights=weights, **given)


def test_a_link_that_leads_nowhere_is_no_reason_to_fail_and_a_folder_without_images_stays_nobodys(
    pretend: list[tuple[str, int]], photos: Path, tmp_path: Path
) -> None:
    images = tmp_path / "photos"
    shutil.copytree(photos, images)
    (next(images.glob("train/*")) / "gone.jpg").symlink_to(tmp_path / "gone.jpg")
    bench(tmp_path / "out", methods=["full"], repetitions=1, data=images, **NANO)
    with pytest.raises(InputError):
        bench(tmp_path / "new", methods=["full"], repetitions=1, data=tmp_path / "typo", **NANO)
    assert not (tmp_path / "new").exists()


def test_one_benchmark_at_a_time_and_sensors_where_there_is_a_folder(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with held_folder(out, "held"), pytest.raises(InputError, match="is being written to by another process"):
        bench(out, methods=["full"], repetitions=1, data=photos, **NANO)
    with pytest.raises(InputError, match=r"--root .*typo is no folder"):
        bench(out, methods=["full"], repetitions=1, data=photos, root=tmp_path / "typo", **NANO)


def test_names_of_folders_leave_the_rest_of_a_sentence_alone(photos: Path, tmp_path: Path) -> None:
    job = prepare(tmp_path, None, choose(None, data=photos, model=NANO["model"]), data=photos)
    made = series.Series(job, [], tmp_path, print, Path("/"))
    assert made._without_paths(f"{photos}/train/a.jpg and {photos}-bench/b and /sys/class") == (
        f"DATA/train/a.jpg and {photos}-bench/b and /sys/class"
    )
