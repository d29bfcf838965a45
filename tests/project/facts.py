"""What the tests of the project as a whole read: its files and its own description."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]


def pyproject() -> dict[str, Any]:
    """pyproject.toml, parsed."""
    parsed: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return parsed


def requirements(extra: str | None = None) -> list[str]:
    """The requirement lines of the package itself or of one extra."""
    project = pyproject()["project"]
    lines: list[str] = project["optional-dependencies"][extra] if extra else project["dependencies"]
    return lines


def tracked(*patterns: str) -> list[Path]:
    """Files under version control, new ones included; in an unpacked sdist, where there is no git, skips."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("git is not installed")
    if done.returncode:
        pytest.skip("not a git checkout")
    return [path for line in sorted(set(done.stdout.splitlines())) if (path := ROOT / line).is_file()]
