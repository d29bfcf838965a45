"""`edgetune plan` and `fit --dry-run`: one plan, made from listings alone."""

from __future__ import annotations

import builtins
import io
import json
import os
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from edgetune import schema
from edgetune.cli.program import app
from edgetune.schema import Plan
from tests.plan.conftest import make_profile

MODEL = ("--model", "vit_nano_patch8_64")


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    schema.save(make_profile(watts=4.0), tmp_path / "profile.json")
    return tmp_path / "profile.json"


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--method", "full", "--batch-size", "8"),
        ("--method", "alast", "--memory", "600MiB"),
        ("--memory", "380MiB", "--epochs", "3"),
        ("--energy", "60J", "--epochs", "40"),
        ("--time", "15s", "--disk", "1"),
        ("--lever", "trained_blocks=3", "--lever", "feature_cache=off", "--image-size", "32", "--seed", "5"),
        ("--method", "lora", "--lr", "1e-3", "--patience", "2", "--no-augment", "--threads", "1"),
    ],
)
def test_plan_and_dry_run_agree(photos: Path, profile: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    common = [str(photos), *MODEL, "--profile", str(profile), *options]
    planned = tmp_path / "plan.json"
    done = CliRunner().invoke(app, ["plan", *common, "--out", str(planned)])
    assert done.exit_code == 0, done.output
    dry = CliRunner().invoke(app, ["fit", *common, "--dry-run", "--json"])
    assert dry.exit_code == 0, dry.output
    first, second = json.loads(planned.read_text()), json.loads(dry.output)
    for made in (first, second):
        made.pop("created")
        if "--memory" not in options:  # the default cap is of what is free at that moment
            made["caps"].pop("memory_bytes")
            made["why"] = [made["why"][0], *made["why"][2:]]
    assert json.dumps(first) == json.dumps(second)
    # a dry run of the plan itself is that plan, to the last byte
    again = CliRunner().invoke(app, ["fit", str(photos), "--plan", str(planned), "--dry-run", "--json"])
    assert json.loads(again.output) == json.loads(planned.read_text())


def test_they_print_the_same_page(photos: Path, profile: Path) -> None:
    common = [str(photos), *MODEL, "--profile", str(profile), "--memory", "600MiB"]
    pages = [CliRunner().invoke(app, words).output for words in (["plan", *common], ["fit", *common, "--dry-run"])]
    assert pages[0] == pages[1]
    assert "Where the memory goes" in pages[0]


def test_nobody_opens_an_image(photos: Path, profile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The images are corrupt, and unreadable; whoever opens one fails here, whatever user the test runs as."""
    common = [str(photos), *MODEL, "--profile", str(profile), "--memory", "600MiB", "--json"]
    before = CliRunner().invoke(app, ["plan", *common])
    sizes = {path: path.stat().st_size for path in photos.rglob("*.jpg")}
    for path in sizes:
        path.chmod(0)
    opened: list[str] = []
    plain_open, plain_io, plain_os = builtins.open, io.open, os.open

    def watch(path: object) -> None:
        if isinstance(path, (str, os.PathLike)) and os.fspath(path).endswith(".jpg"):
            opened.append(os.fspath(path))

    def spied(plain):
        def call(path, *args, **kwargs):
            watch(path)
            return plain(path, *args, **kwargs)

        return call

    monkeypatch.setattr(builtins, "open", spied(plain_open))
    monkeypatch.setattr(io, "open", spied(plain_io))
    monkeypatch.setattr(os, "open", spied(plain_os))
    planned = CliRunner().invoke(app, ["plan", *common])
    dry = CliRunner().invoke(app, ["fit", *common, "--dry-run"])
    assert (planned.exit_code, dry.exit_code) == (0, 0), planned.output + dry.output
    assert opened == []
    plans = [msgspec.json.decode(done.output, type=Plan) for done in (before, planned, dry)]
    assert {plan.total_steps for plan in plans} == {plans[0].total_steps}
