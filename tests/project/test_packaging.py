"""The wheel and the sdist: what is in them, and that a wheel works away from the checkout."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from edgetune.__about__ import __version__
from tests.project.facts import ROOT, pyproject, requirements


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist, built offline by the declared backend."""
    pytest.importorskip("hatchling", reason="hatchling is not installed: make test installs it")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--target", "sdist"]
    subprocess.run([*command, "--directory", str(folder)], cwd=ROOT, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    """The wheel."""
    (found,) = built.glob("*.whl")
    return found


def test_the_wheel_holds_code_boards_and_bundled_files_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert wheel.name == f"edgetune-{__version__}-py3-none-any.whl"
    assert {name.split("/")[0] for name in names} == {"edgetune", f"edgetune-{__version__}.dist-info"}
    boards = {f"edgetune/_devices/{path.name}" for path in (ROOT / "devices").glob("*.toml")}
    assert boards
    assert boards <= set(names)
    assert {"edgetune/py.typed", "edgetune/cli/program.py"} <= set(names)
    bundled = {str(path.relative_to(ROOT)) for path in (ROOT / "edgetune/bundled").rglob("*") if path.is_file()}
    assert bundled <= set(names)
    assert not [name for name in names if "__pycache__" in name or "/tests/" in name]


def test_the_sdist_holds_what_its_tests_need(built: Path) -> None:
    (found,) = built.glob("*.tar.gz")
    with tarfile.open(found) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "Makefile", "LICENSE", "NOTICE", "README.md", "Dockerfile.jetson"} <= names
    assert [name for name in names if name.startswith("tests/project/")]
    assert [name for name in names if name.startswith("devices/")]
    assert [name for name in names if name.startswith("scripts/arm64")]
    assert not [name for name in names if ":" in name], "uv refuses an sdist with such names"


def test_an_unpacked_wheel_finds_its_boards(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = (
        "import json, edgetune, edgetune.resources as r;"
        "print(json.dumps([edgetune.__file__, edgetune.__version__, str(r.resource_folder('devices'))]))"
    )
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    where, version, devices = json.loads(done.stdout)
    assert where.startswith(str(tmp_path))
    assert version == __version__
    assert devices == str(tmp_path / "edgetune" / "_devices")


def test_the_wheel_is_small(wheel: Path) -> None:
    assert wheel.stat().st_size < 15_000_000


def test_every_extra_named_in_a_message_exists() -> None:
    extras = set(pyproject()["project"]["optional-dependencies"])
    named = set()
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "edgetune").rglob("*.py")]:
        for found in re.findall(r"edgetune\[([a-z,]+)\]", path.read_text()):
            named |= set(found.split(","))
    assert named <= extras


def test_contributing_gives_every_dependency_its_reason() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    rows = dict(re.findall(r"^\| `([a-z0-9_-]+)` \| (.+?) \|$", text, re.MULTILINE))
    wanted = set()
    for extra in (None, *pyproject()["project"]["optional-dependencies"]):
        wanted |= {Requirement(line).name for line in requirements(extra)} - {"edgetune"}
    assert rows.keys() == wanted, "CONTRIBUTING.md's table and pyproject.toml differ"
    assert all(len(reason) > 15 for reason in rows.values())


def test_the_changelog_knows_this_version() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert __version__ in headings
    assert len(set(headings)) == len(headings)
