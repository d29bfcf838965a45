"""What holds for every file: Python 3.10, documented, one direction of imports, no traces of one machine."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.project.facts import ROOT, tracked

MODULES = [path for path in sorted((ROOT / "edgetune").rglob("*.py")) if "__pycache__" not in path.parts]
IDS = [str(path.relative_to(ROOT)) for path in MODULES]

# board → profile → plan → run → report: a room imports from its own line and the lines above it.
FLOORS = (
    {"__about__", "allocator", "errors", "units", "files", "processes", "schema", "resources"},
    {"device"},
    {"model"},
    {"optim"},
    {"data"},
    {"measure"},
    {"profile"},
    {"alast"},
    {"options", "plan"},
    {"report"},
    {"train"},
    {"infer"},
    {"export"},
    {"bench"},
    {"selftest"},
    {"cli"},
    {"__init__", "__main__"},
)
# Split, so that this file is not found by its own search.
FOREIGN = re.compile(
    "|".join(
        (
            "/work/" + "(main|shared)",
            "/" + r"root/(?!\.cache/pip)",
            "/opt/" + "pypi",
            "/tmp/" + "w/",
            "pypi" + r"\.org",
            "python" + "hosted" + r"\.org",
            "registry" + r"\.npmjs",
            "deb" + r"\.debian\.org",
        )
    )
)


def floor(room: str) -> int:
    """How far down the house a room lies."""
    found = [index for index, rooms in enumerate(FLOORS) if room in rooms]
    assert found, f"edgetune.{room} has no place in tests/project/test_sources.py: say where it belongs"
    return found[0]


def room_of(path: Path) -> str:
    """The room a module belongs to: the first part of its path below the package."""
    return path.relative_to(ROOT / "edgetune").with_suffix("").parts[0]


def imports_when_loaded(tree: ast.Module) -> set[str]:
    """Rooms of edgetune that a module imports anywhere but under `if TYPE_CHECKING`."""
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    rooms = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        names = []
        if isinstance(node, ast.ImportFrom) and node.module == "edgetune":
            names = [f"edgetune.{alias.name}" for alias in node.names if not alias.name.startswith("__")]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        rooms |= {name.split(".")[1] for name in names if name.startswith("edgetune.")}
    return rooms


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_imports_go_one_way(path: Path) -> None:
    here = room_of(path)
    for room in imports_when_loaded(ast.parse(path.read_text())):
        assert floor(room) <= floor(here), f"{here} reaches back to {room}"
        # The shared vocabulary speaks among itself; rooms side by side do not.
        assert room == here or floor(room) < floor(here) or not floor(here), f"{here} and {room} share a floor"


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_every_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), f"{path} has no docstring"


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_modules_are_read_in_one_sitting(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 500


def test_all_lists_are_sorted_and_true() -> None:
    for path in MODULES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                names = ast.literal_eval(node.value)
                assert names == sorted(names), path


def test_the_api_is_what_all_says() -> None:
    import edgetune

    for name in edgetune.__all__:
        assert getattr(edgetune, name) is not None


def test_every_python_file_is_python_3_10() -> None:
    files = tracked("*.py")
    assert len(files) > 20
    for path in files:
        ast.parse(path.read_text(), filename=str(path), feature_version=(3, 10))


def test_no_file_names_one_machine_or_registry() -> None:
    for path in tracked():
        if path.suffix in {".safetensors", ".png", ".jpg", ".zip", ".tar", ".gz", ".npz"}:
            continue
        text = path.read_text(errors="replace")
        found = FOREIGN.search(text)
        assert found is None, f"{path.relative_to(ROOT)} names {found[0] if found else ''!r}"


def test_no_file_is_too_large_for_a_checkout() -> None:
    large = {str(path.relative_to(ROOT)): path.stat().st_size for path in tracked() if path.stat().st_size > 8_000_000}
    assert not large
