"""The run folder: what lies where."""

from __future__ import annotations

import re
import shutil
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec

from edgetune.errors import InputError
from edgetune.files import held_folder

CONFIG_SCHEMA = "edgetune/config/1"
_UNFINISHED = re.compile(r"\.(.+)\.\d+\.new")  # see `edgetune.files.atomic_path`


class RunFolder:
    """Paths of a run's artifacts; docs/artifacts.md says what each holds."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.plan = path / "plan.json"
        self.profile = path / "profile.json"
        self.config = path / "config.json"
        self.metrics = path / "metrics.jsonl"
        self.best = path / "best.safetensors"
        self.last = path / "last.safetensors"
        self.base = path / "state" / "base.safetensors"
        self.state = path / "state" / "state.safetensors"
        self.graphs = path / "state" / "graphs"  # of an export, where the run was given one
        self.result = path / "result.json"
        self.mistakes = path / "mistakes.json"
        self.report = path / "report.html"

    def held(self) -> AbstractContextManager[None]:
        """Keep other processes from training here meanwhile; see `held_folder`."""
        return held_folder(self.path, "being trained in")

    def create(self) -> None:
        """Make the folder for a new run, also of what a run left that ended before its first state.

        Raises:
            InputError: it exists and holds anything else, or can't be made.
        """
        left = self._left_before_first_state() if self.path.exists() else []
        if left is None:
            hint = "add --resume to go on with it, or " if self.state.exists() else ""
            raise InputError(f"--out {self.path} exists already; {hint}choose another folder.")
        try:
            for file in left:  # nobody can resume it, and what this run writes would mix with it
                file.unlink()
            for folder in (self.graphs, self.base.parent):
                if folder.is_dir():
                    folder.rmdir()
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--out {self.path} can't be made ({error.strerror}); choose another folder.") from None

    def _left_before_first_state(self) -> list[Path] | None:
        """What is in the way of a new run, all of it of one that was killed so early; None where anything else is here.

        The configuration is written first: without one, a plan or a profile is somebody's. Then come these two, and
        without all three nothing else here is a run's.
        """
        ours = self._has_config()
        if not self.path.is_dir() or (self.config.exists() and not ours):
            return None
        settings = {self.plan, self.profile, self.config}
        begun = ours and all(file.exists() for file in settings)
        early = (settings if ours else {self.config}) | ({self.metrics, self.base, self.state} if begun else set())
        found: list[Path] = []
        for path in self.path.rglob("*"):
            unfinished = _UNFINISHED.fullmatch(path.name)
            if path.is_dir():
                known = begun and path in (self.base.parent, self.graphs) and not path.is_symlink()
            else:
                target = path.with_name(unfinished[1]) if unfinished else path
                known = target in early and (unfinished is not None or path != self.state)
                known = known or (path.parent == self.graphs and target.suffix in (".onnx", ".json"))
            if not known:
                return None
            if not path.is_dir() and path not in settings:
                found.append(path)
        return found

    def _has_config(self) -> bool:
        """Whether `config.json` is a run's."""
        try:
            return bool(msgspec.json.decode(self.config.read_bytes())["schema"] == CONFIG_SCHEMA)
        except (OSError, msgspec.DecodeError, KeyError, TypeError):
            return False

    def discard(self) -> None:
        """Take back what a run wrote before it could train, so that the corrected command can use the same folder."""
        if self.state.exists():
            return
        self.delete_features()
        shutil.rmtree(self.graphs, ignore_errors=True)
        for file in (self.plan, self.profile, self.config, self.metrics, self.base):
            file.unlink(missing_ok=True)
        for folder in (self.base.parent, self.path):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def delete_features(self) -> None:
        """Give back the disk that cached features took."""
        for file in self.base.parent.glob("features-*"):
            file.unlink(missing_ok=True)

    def open(self) -> None:
        """Take up the run that is here.

        Raises:
            InputError: nothing here can be resumed.
        """
        self.check()
        for unfinished in self.path.rglob(".*.new"):  # of a write that a power cut ended
            unfinished.unlink(missing_ok=True)

    def check(self) -> None:
        """Make sure that there is a run to go on with.

        Raises:
            InputError: nothing here can be resumed.
        """
        if not (self.plan.exists() and self.state.exists() and self.base.exists()):
            raise InputError(f"--out {self.path} holds no run that can be resumed; leave out --resume to start one.")
