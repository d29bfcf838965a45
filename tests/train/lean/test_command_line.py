"""The lean trainer from the command line: a run with levers, resumed; and what is refused, in one sentence each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

NANO = ("--model", "vit_nano_patch8_64", "--image-size", "32", "--batch-size", "6", "--threads", "1", "--workers", "0")
LEVERS = (
    "trainer=lean", "trained_blocks=2", "k=2", "token-min=1", "token-max=1", "precision=fp32", "frozen_precision=bf16",
    "frozen_weights=int8", "optimizer=adamw", "optimizer_state=factored", "saved_activations=full",
    "saved_precision=int8", "feature_cache=int8", "feature_views=2",
)  # fmt: skip


def options(levers: tuple[str, ...]) -> list[str]:
    return [word for lever in levers for word in ("--lever", lever)]


def test_a_run_with_levers_ends_well_and_can_be_taken_up_again(edgetune, photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    common = [photos, *NANO, "--method", "edgetune", *options(LEVERS)]
    done = edgetune("fit", *common, "--out", run, "--epochs", "2", "--quiet")
    assert done.code == 0, done.err
    plan = json.loads((run / "plan.json").read_text())
    for name in ("trainer", "frozen_weights", "frozen_precision", "optimizer_state", "saved_precision"):
        assert f"{name}={plan[name]}" in LEVERS
    assert (plan["k"], plan["lowest_trainable_block"]) == (2, 4)
    assert plan["feature_cache"]["precision"] == "int8"
    assert plan["feature_cache"]["views"] == 2
    config = json.loads((run / "config.json").read_text())
    assert config["lever"] == list(LEVERS)
    result = json.loads((run / "result.json").read_text())
    assert result["stopped_by"] == "epochs"
    assert result["work"]["bytes_written"] > plan["feature_cache"]["train_bytes"]
    assert (run / "report.html").exists()
    again = edgetune("fit", "--resume", "--out", run, "--quiet")
    assert again.code == 0, again.err
    assert json.loads((run / "result.json").read_text())["work"]["images"] == result["work"]["images"]


@pytest.mark.parametrize(
    ("method", "levers", "sentence"),
    [
        ("full", ("trainer=lean", "saved_bits=8"), "saved_bits=8 is not understood; write NAME=VALUE with one of"),
        ("full", ("int8",), "int8 is not understood"),
        ("full", ("trainer=lean", "saved_precision=int3"), "int3"),
        ("full", ("trainer=lean", "k=many"), "k"),
        (
            "full",
            ("trainer=lean", "k=0"),
            "trained_blocks, k, part_tokens and feature_views are counts; give 1 or more",
        ),
        ("edgetune", ("token_min=0.9", "token_max=0.5"), "0 < token_min <= token_max <= 1"),
        ("edgetune", ("token_max=1.5",), "0 < token_min <= token_max <= 1"),
        ("edgetune", ("token_min=some",), "is not a number; give a share, 0.7 for instance"),
        ("full", ("trainer=autograd", "saved_precision=int8"), "saved_precision=int8 needs the lean trainer"),
        ("full", ("trainer=autograd", "optimizer=sgd-plain"), "optimizer=sgd-plain needs the lean trainer"),
        ("alast-lora", ("trainer=lean",), "trainer=lean moves budgets once a step; --method alast-lora needs"),
        ("alast", ("trainer=lean",), "trainer=lean moves budgets once a step; --method alast needs trainer=autograd"),
        ("full", ("trainer=lean", "trained_blocks=2"), "trains the embeddings, and so every block; use last-2"),
        ("edgetune", ("trained_blocks=9",), "trained_blocks=9 is more than the 6 there are"),
    ],
)
@pytest.mark.parametrize("command", ["plan", "fit"])
def test_levers_that_cannot_be_set_are_exit_2_with_one_sentence(
    command: str, method: str, levers: tuple[str, ...], sentence: str, edgetune, photos: Path, tmp_path: Path
) -> None:
    out = ["--out", tmp_path / "run"] if command == "fit" else []
    ended = edgetune(command, photos, *NANO, "--method", method, *options(levers), *out)
    assert ended.code == 2, ended
    assert sentence in ended.err
    assert ended.err.startswith("error: --")
    assert ended.err.strip().count("\n") == 0
    assert "Traceback" not in ended.err
    assert not (tmp_path / "run").exists()


def test_a_plan_says_what_its_cache_costs_and_what_is_given_up(edgetune, photos: Path) -> None:
    ended = edgetune("plan", photos, *NANO, "--method", "edgetune", *options(LEVERS), "--json")
    assert ended.code == 0, ended.err
    plan = json.loads(ended.out)
    size = plan["feature_cache"]["train_bytes"] + plan["feature_cache"]["val_bytes"]
    assert size > 0
    reasons = " ".join(plan["why"])
    assert "disk" in reasons
    assert "view" in reasons or "augment" in reasons


def test_adapters_train_over_cached_features(edgetune, photos: Path, tmp_path: Path) -> None:
    levers = ("trainer=lean", "trained_blocks=2", "precision=bf16", "frozen_weights=bf16", "optimizer_state=factored",
              "saved_precision=int8", "feature_cache=fp16")  # fmt: skip
    run = tmp_path / "run"
    common = [photos, *NANO, "--method", "lora", *options(levers)]
    done = edgetune("fit", *common, "--out", run, "--epochs", "2", "--quiet")
    assert done.code == 0, done.err
    plan = json.loads((run / "plan.json").read_text())
    assert plan["lora"]["rank"] == 8
    assert plan["trainer"] == "lean"
    assert plan["feature_cache"] is not None
    result = json.loads((run / "result.json").read_text())
    assert (result["stopped_by"], result["warnings"]) == ("epochs", plan["warnings"])
