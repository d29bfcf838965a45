"""Which folders a new run may have: those of nobody, and those in which a run was killed before it had a state."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgetune.errors import InputError
from edgetune.train.fit import fit, resume
from edgetune.train.folder import RunFolder
from edgetune.train.lean.engine import LeanEngine

SETTINGS = ("plan.json", "profile.json", "config.json")
EARLY = (
    *SETTINGS,
    "metrics.jsonl",
    ".config.json.71.new",
    "state/base.safetensors",
    "state/.base.safetensors.71.new",
    "state/.state.safetensors.71.new",
    "state/graphs/embed.onnx",
)


HOLD = """
import sys, time
from pathlib import Path
from edgetune.train.folder import RunFolder
with RunFolder(Path(sys.argv[1])).held():
    print("held", flush=True)
    time.sleep(60)
"""


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path) -> None:
    out = tmp_path / "run"
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(out)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="by another process"), RunFolder(out).held():
            pass
        other.kill()  # the system lets go with the process, however it ends
        other.wait()
        with RunFolder(out).held():
            RunFolder(out).create()
    finally:
        other.kill()
        other.wait()


def filled(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text('{"schema": "edgetune/config/1"}' if name == "config.json" else name)
    return root


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}


def test_what_a_run_leaves_before_its_first_state_makes_room_for_another(tmp_path: Path) -> None:
    run = filled(tmp_path / "run", *EARLY)
    RunFolder(run).create()
    assert files(run) == set(SETTINGS)  # which are written over
    assert not (run / "state").exists()


@pytest.mark.parametrize("names", [(), SETTINGS, SETTINGS[2:], (".config.json.71.new",)], ids=str)
def test_a_run_may_have_an_empty_folder_and_one_whose_run_never_began(names: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    RunFolder(filled(tmp_path / "run", *names)).create()
    assert files(tmp_path / "run") == set(names) & set(SETTINGS)


@pytest.mark.parametrize(
    "name",
    [
        "state/state.safetensors",
        "state/features-train-0",
        "state/notes.txt",
        "state/graphs/notes.txt",
        "state/older/base.safetensors",
        "best.safetensors",
        "last.safetensors",
        ".best.safetensors.71.new",
        "result.json",
        "mistakes.json",
        "report.html",
        "thesis.txt",
        ".thesis.txt.71.new",
        "photos/metrics.jsonl",
    ],
)
def test_a_folder_with_anything_else_is_refused_and_left_as_it_is(name: str, tmp_path: Path) -> None:
    run = filled(tmp_path / "run", *EARLY, name)
    hint = "add --resume to go on with it, or " if name == "state/state.safetensors" else ""
    with pytest.raises(InputError, match=f"run exists already; {hint}choose another folder"):
        RunFolder(run).create()
    assert files(run) == {*EARLY, name}


@pytest.mark.parametrize("name", ["metrics.jsonl", "state/base.safetensors", "state/graphs/embed.onnx"])
@pytest.mark.parametrize("missing", SETTINGS)
def test_without_what_every_run_writes_first_nothing_is_a_run_s(missing: str, name: str, tmp_path: Path) -> None:
    kept = {*SETTINGS, name} - {missing}
    run = filled(tmp_path / "run", *kept)
    with pytest.raises(InputError, match="exists already"):
        RunFolder(run).create()
    assert files(run) == kept


@pytest.mark.parametrize("names", [SETTINGS[:1], SETTINGS[:2], SETTINGS, (".plan.json.71.new",)], ids=str)
def test_a_plan_or_a_profile_of_somebody_is_neither_written_over_nor_deleted(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    run = filled(tmp_path / "run", *names)
    if "config.json" in names:
        (run / "config.json").write_text('{"model": "mine"}')
    with pytest.raises(InputError, match="exists already"):
        RunFolder(run).create()
    assert files(run) == set(names)


@pytest.mark.parametrize("name", ["notes", "state/notes"])
def test_an_empty_folder_of_somebody_else_is_left_too(name: str, tmp_path: Path) -> None:
    run = filled(tmp_path / "run", *EARLY)
    (run / name).mkdir()
    with pytest.raises(InputError, match="exists already"):
        RunFolder(run).create()
    assert files(run) == set(EARLY)


def test_a_link_to_another_folder_is_not_followed(tmp_path: Path) -> None:
    elsewhere = filled(tmp_path / "elsewhere", "base.safetensors")
    run = filled(tmp_path / "run", *SETTINGS)
    (run / "state").symlink_to(elsewhere)
    with pytest.raises(InputError, match="exists already"):
        RunFolder(run).create()
    assert files(elsewhere) == {"base.safetensors"}


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("all my work")
    with pytest.raises(InputError, match="exists already; choose another folder"):
        RunFolder(tmp_path / "run").create()
    assert (tmp_path / "run").read_text() == "all my work"


def test_a_run_killed_before_its_first_state_can_be_begun_again(
    plan_for: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    run, plan = tmp_path / "run", plan_for(epochs=1)
    assert plan.trainer == "lean"
    with monkeypatch.context() as patched:
        patched.setattr(LeanEngine, "save_state", killed)
        patched.setattr(RunFolder, "discard", lambda self: None)  # a killed run takes nothing back
        with pytest.raises(KeyboardInterrupt):
            fit(plan, run, quiet=True)
    assert files(run) == {*SETTINGS, "state/base.safetensors"}
    with pytest.raises(InputError, match="leave out --resume to start one"):
        resume(run, quiet=True)
    assert fit(plan, run, quiet=True).stopped_by == "epochs"
