"""Graphs kept between runs are those of this code."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import edgetune
from edgetune.train.onnx import cache

ROOT = Path(edgetune.__file__).parent.parent
# What they import besides: facts that the digest holds itself, and types.
KNOWN = {"edgetune/model/ops.py", "edgetune/errors.py"}


def imported(path: Path) -> set[Path]:
    """Modules of ours that a module imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("edgetune."):
            names |= {node.module, *(f"{node.module}.{item.name}" for item in node.names)}
        elif isinstance(node, ast.Import):
            names |= {item.name for item in node.names if item.name.startswith("edgetune.")}
    paths = {ROOT / (name.replace(".", "/") + ".py") for name in names}
    return {path for path in paths if path.is_file()}


def test_every_module_that_decides_what_a_graph_is_counts() -> None:
    waiting, found = [Path(cache.__file__).with_name("graphs.py")], set()
    while waiting:
        path = waiting.pop()
        if path not in found and str(path.relative_to(ROOT)) not in KNOWN:
            found.add(path)
            waiting += imported(path)
    assert {str(path.relative_to(ROOT)) for path in found} <= {str(it.relative_to(ROOT)) for it in cache._sources()}
