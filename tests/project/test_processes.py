"""Modules started as processes: what lies in the current folder is not theirs."""

from __future__ import annotations

import subprocess
from pathlib import Path

from edgetune.processes import module_command


def test_files_of_the_current_folder_are_not_taken_for_pythons(tmp_path: Path) -> None:
    for name in ("random", "queue", "statistics", "msgspec"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a file of the user was imported')")
    command = [*module_command("edgetune.train.onnx.write"), "only one argument"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "a file of the user" not in done.stderr
    assert "IndexError" in done.stderr  # it came as far as its arguments
