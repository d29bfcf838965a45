"""Every command the documents show is one the command line takes, and every script is sound."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from edgetune.cli import app
from edgetune.plan.levers import Levers
from edgetune.schema import FeatureCachePlan, Plan
from tests.project.facts import ROOT, requirements

DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
SCRIPTS = [*sorted((ROOT / "scripts").glob("*.sh")), ROOT / ".ci" / "run"]


def commands_in(path: Path) -> Iterator[str]:
    """The `edgetune …` lines of a document's code blocks, continuation lines joined."""
    for block in re.findall(r"^ *```[a-z]*\n(.*?)^ *```", path.read_text(), re.MULTILINE | re.DOTALL):
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            line = line.strip().removeprefix("$ ")
            if line.startswith("edgetune "):
                yield line


def parse(line: str) -> None:
    """Let the command line read a command without running it."""
    words = shlex.split(line, comments=True)[1:]
    for stop in ("|", ">", "&&", "||", ";", "&"):
        words = words[: words.index(stop)] if stop in words else words
    words = [word for word in words if word != "--debug"]  # read by main, wherever it stands
    command: Any = typer.main.get_command(app)
    context = None
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        context = command.make_context(words[0], [words[0]], parent=context, resilient_parsing=True)
        name, *words = words
        assert name in command.commands, f"{line!r}: there is no command {name!r}"
        command = command.commands[name]
    if words not in (["--help"], ["--version"]):
        command.make_context(command.name, list(words))


DOCUMENTED = [(path, line) for path in DOCUMENTS for line in commands_in(path)]


@pytest.mark.parametrize(("path", "line"), DOCUMENTED, ids=[f"{p.name}: {line}"[:90] for p, line in DOCUMENTED])
def test_documented_commands_are_understood(path: Path, line: str) -> None:
    parse(line)


def options_of(command: Any) -> dict[str, set[str]]:
    """Every command's options, by the command's name."""
    found = {}
    for name, sub in command.commands.items():
        if hasattr(sub, "commands"):
            found |= {f"{name} {inner}": options for inner, options in options_of(sub).items()}
        else:
            spelled = [option for parameter in sub.params for option in (*parameter.opts, *parameter.secondary_opts)]
            found[name] = {option for option in spelled if option[:2] == "--"}
    return found


def test_options_in_running_text_exist() -> None:
    known = options_of(typer.main.get_command(app))
    checked = 0
    for path in DOCUMENTS:
        for code in re.findall(r"`(edgetune [a-z][^`]*)`", path.read_text()):
            names = [name for name in known if code.startswith(f"edgetune {name}")]
            assert names or code.startswith("edgetune devices"), f"{path.name}: {code}"
            for option in re.findall(r"--[a-z][a-z-]*", code):
                assert option in {"--help", *known[max(names, key=len)]}, f"{path.name}: {code} has no {option}"
                checked += 1
    assert checked > 10


def test_the_reference_names_every_option() -> None:
    text = (ROOT / "docs" / "artifacts.md").read_text()
    wanted = set().union(*options_of(typer.main.get_command(app)).values())
    assert not {option for option in wanted if not re.search(rf"{option}\b", text)}


def test_the_reference_names_every_lever_and_the_field_it_sets() -> None:
    text = (ROOT / "docs" / "artifacts.md").read_text()
    table = text.split("## Levers")[1].split("## Artifacts")[0]
    plan = text.split("**plan**")[1].split("**run folder**")[0]
    assert not [name for name in Levers.__struct_fields__ if f"`{name}`" not in table]
    assert not [name for name in Levers.__struct_fields__ if name in Plan.__struct_fields__ and name not in plan]
    assert not [name for name in FeatureCachePlan.__struct_fields__ if name not in plan]


def test_the_readme_shows_the_whole_loop() -> None:
    shown = {shlex.split(line)[1] for line in commands_in(ROOT / "README.md")}
    assert {"profile", "plan", "fit", "evaluate", "export"} <= shown


def test_a_command_that_does_not_exist_is_found_out() -> None:
    with pytest.raises(AssertionError, match="trian"):
        parse("edgetune trian data")
    for wrong in ("edgetune fit data --no-such-option 3", "edgetune plan data --epochs many"):
        with pytest.raises(Exception, match=r"No such option|valid int"):
            parse(wrong)


def test_the_demo_runs_commands_that_exist() -> None:
    text = (ROOT / "scripts" / "demo.sh").read_text()
    steps = [f"edgetune {line[5:]}" for line in text.splitlines() if line.startswith("step ")]
    assert len(steps) >= 5
    for line in steps:
        parse(line)


@pytest.mark.parametrize("path", SCRIPTS, ids=[path.name for path in SCRIPTS])
def test_scripts_stop_at_the_first_error(path: Path) -> None:
    assert "set -euo pipefail" in path.read_text()
    assert os.access(path, os.X_OK)
    subprocess.run(["bash", "-n", str(path)], check=True)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_bare_make_lists_every_target() -> None:
    done = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = set(re.findall(r"^ +make ([a-z0-9-]+)", done.stdout, re.MULTILINE))
    phony = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony
    assert listed == set(phony[1].split())


def test_ci_runs_make_test_and_names_no_registry() -> None:
    text = (ROOT / ".ci" / "run").read_text()
    assert re.search(r"^make test\b", text, re.MULTILINE)
    assert "http" not in text


CONTAINER_FILES = ("Dockerfile.jetson", "Dockerfile.pi")


@pytest.mark.parametrize("name", CONTAINER_FILES)
def test_the_images_are_built_as_promised(name: str) -> None:
    text = (ROOT / name).read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert lines[0].startswith("ARG BASE_IMAGE=")
    assert len([line for line in lines if line.startswith("FROM ")]) >= 2
    users = [line for line in lines if line.startswith("USER ")]
    assert users
    assert users[-1] not in ("USER root", "USER 0")
    assert "--groups video" in text
    assert "<<" not in text  # older builders do not know heredocs
    assert 'ENTRYPOINT ["edgetune"]' in lines
    assert [line for line in lines if line.startswith("HEALTHCHECK ")]
    assert "org.opencontainers.image.title" in text
    needed = set(re.findall(r"/source/([a-z][\w./-]+)", text))
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert needed
    assert needed <= allowed, "the build context leaves out what the build reads"


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("jetpack", ["4", "5", "6", "7"])
def test_each_jetpack_has_its_base(jetpack: str) -> None:
    done = subprocess.run(
        ["make", "-n", "image-jetson", f"JETPACK={jetpack}"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    base = re.search(r"--build-arg BASE_IMAGE=(\S+)", done.stdout)
    assert base
    if jetpack in ("4", "5"):
        assert base[1].startswith("python:3.1")
        assert "EXTRAS=[torch]" in done.stdout
        assert "requirements/cpu-aarch64.txt" in done.stdout
    else:
        assert "pytorch" in base[1]
        assert "EXTRAS" not in done.stdout, "a base with a torch of its own keeps it"
    if jetpack == "6":
        assert f"ARG BASE_IMAGE={base[1]}" in (ROOT / "Dockerfile.jetson").read_text()


def test_an_unknown_jetpack_is_refused() -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    done = subprocess.run(["make", "image-jetson", "JETPACK=9"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "JETPACK=9" in done.stderr


def test_the_arm64_lane_tries_the_oldest_torch_and_tests_that_exist() -> None:
    floor = next(line for line in requirements("torch") if line.startswith("torch>="))
    text = (ROOT / "scripts" / "arm64_root.sh").read_text()
    assert f"torch=={floor.removeprefix('torch>=').split(';')[0].strip()} " in text
    lane = re.search(r"^tests=\((.+)\)$", (ROOT / "scripts" / "test_arm64.sh").read_text(), re.MULTILINE)
    assert lane
    assert not [path for path in lane[1].split() if not (ROOT / path).exists()]


@pytest.mark.parametrize("name", ["test_arm64.sh", "test_images.sh"])
def test_a_lane_that_cannot_run_says_why_and_is_no_failure_of_tests(name: str, tmp_path: Path) -> None:
    # a PATH without mmdebstrap; the shell and what it needs to get there are the machine's
    for tool in ("bash", "dirname", "id", "uname", "mkdir", "flock", "grep", "sed", "cat"):
        (tmp_path / tool).symlink_to(shutil.which(tool) or "/bin/false")
    environment = {"PATH": str(tmp_path), "HOME": str(tmp_path), "UV": "/bin/true"}
    command = [str(tmp_path / "bash"), str(ROOT / "scripts" / name)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 77, done.stderr
    assert "not run: " in done.stderr
    assert "mmdebstrap" in done.stderr or "need root" in done.stderr


@pytest.mark.parametrize("name", CONTAINER_FILES)
def test_hadolint_finds_nothing(name: str) -> None:
    hadolint = Path(sysconfig.get_path("scripts")) / "hadolint"
    if not hadolint.exists():
        pytest.skip("hadolint is not installed: make test installs it on x86_64")
    done = subprocess.run([hadolint, name], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_installing_in_an_image_keeps_its_torch(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="hatchling is not installed: make test installs it")
    # A stand-in base: a Python that sees this environment's packages behind a torch of its own, as a Jetson's would be.
    base = tmp_path / "base"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(base)], check=True)
    (site,) = (base / "lib").glob("python*/site-packages")
    version = "2.5.0a0+872d972e41.nv24.8"
    for folder, name, content in (
        ("torch", "__init__.py", f"__version__ = {version!r}\n"),
        (f"torch-{version}.dist-info", "METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n"),
        (f"torch-{version}.dist-info", "RECORD", "torch/__init__.py,,\n"),
        (f"torch-{version}.dist-info", "INSTALLER", "pip\n"),
    ):
        (site / folder).mkdir(exist_ok=True)
        (site / folder / name).write_text(content)
    (site / "rest.pth").write_text(sysconfig.get_path("purelib") + "\n")
    before = sorted(str(path) for path in site.rglob("*") if "__pycache__" not in path.parts)

    target = tmp_path / "edgetune"
    script = ROOT / "scripts" / "install_beside.sh"
    # --no-index: everything edgetune needs is in the base already, so nothing may be fetched.
    command = ["bash", str(script), str(ROOT), str(target), "--no-index", "--no-build-isolation", "--quiet"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["PYTHON"] = str(base / "bin" / "python")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert f"kept from the base image: torch {version}" in done.stdout
    assert sorted(str(path) for path in site.rglob("*") if "__pycache__" not in path.parts) == before
    code = "import torch, edgetune; print(torch.__version__, edgetune.__file__)"
    command = [str(target / "bin" / "python"), "-c", code]
    asked = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    seen, where = asked.stdout.split()
    assert seen == version
    assert where.startswith(str(target))
    assert (target / "bin" / "edgetune").exists()
