"""Start-up: the command line answers before anything heavy is imported."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

from tests.pace import slowness
from tests.project.facts import ROOT

HEAVY = {"torch", "torchvision", "onnx", "onnxruntime", "timm", "transformers", "huggingface_hub"}
NEVER_AT_IMPORT = HEAVY | {"numpy", "PIL"}
# Rooms that answer on a board without torch; `profile` runs its probes in a child process.
TORCH_FREE = (
    "edgetune",
    "edgetune.cli",
    "edgetune.errors",
    "edgetune.units",
    "edgetune.files",
    "edgetune.schema",
    "edgetune.resources",
    "edgetune.model.spec",
    "edgetune.model.registry",
    "edgetune.data.folder",
    "edgetune.profile",
)
TORCH_FREE_PACKAGES = ("edgetune.device", "edgetune.plan")

_IMPORTED = """
import importlib, json, pkgutil, sys
before = set(sys.modules)
for name in json.loads(sys.argv[1]):
    module = importlib.import_module(name)
    if name in json.loads(sys.argv[2]):
        for found in pkgutil.walk_packages(module.__path__, name + "."):
            importlib.import_module(found.name)
print(json.dumps(sorted({name.partition(".")[0] for name in set(sys.modules) - before})))
"""


def imported_by(modules: tuple[str, ...], packages: tuple[str, ...] = ()) -> set[str]:
    """Top-level modules that importing these brings."""
    command = [sys.executable, "-c", _IMPORTED, json.dumps([*modules, *packages]), json.dumps(packages)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def test_rooms_that_need_no_engine_import_none() -> None:
    assert not NEVER_AT_IMPORT & imported_by(TORCH_FREE, TORCH_FREE_PACKAGES)


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; sys.argv = ['edgetune', '--help']\nfrom edgetune.cli import main\n"
    code += "try:\n    main()\nfinally:\n    print('MODULES', *sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    help_text, _, modules = done.stdout.partition("MODULES")
    assert "fit" in help_text
    assert not NEVER_AT_IMPORT & set(modules.split())


def test_help_answers_in_a_third_of_a_second() -> None:
    # Start-up only computes, so its processor time is what a person waits for on a machine that does nothing else;
    # the wall clock would also measure what runs beside the tests. The best of several, since caches warm up.
    seconds = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "edgetune", "--help"], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert 0 < min(seconds) < 0.3 * slowness()
