"""The command line: each kind of bad input gets one sentence and its exit code; flags, files and plans agree."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from edgetune.cli import training
from tests.conftest import Ended

NANO = ["--model", "vit_nano_patch8_64", "--image-size", "32"]


def make_folder(root: Path, layout: dict[str, int]) -> Path:
    for place, count in layout.items():
        folder = root / place
        folder.mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (8, 8), (index * 9 % 256, 0, 0)).save(folder / f"{index}.png")
    return root


@pytest.mark.parametrize(
    ("layout", "sentence"),
    [
        ({}, "no class folders|is empty|holds no"),
        ({"train/cat": 4}, "has one class, 'cat'"),
        ({"train/cat": 4, "train/dog": 0}, "dog holds no image"),
        ({"train/cat": 4, "train/dog": 4, "val/cat": 2, "val/emu": 2}, "emu"),
    ],
)
def test_bad_folders_are_exit_2_with_one_sentence(
    edgetune: Callable[..., Ended], tmp_path: Path, layout: dict[str, int], sentence: str
) -> None:
    root = make_folder(tmp_path / "photos", layout)
    root.mkdir(exist_ok=True)
    ended = edgetune("plan", root, *NANO)
    assert ended.code == 2
    assert ended.err.startswith("error: ")
    assert len(ended.err.splitlines()) == 1
    assert str(root) in ended.err
    assert any(part in ended.err for part in sentence.split("|")), ended.err


def test_a_missing_folder_is_named(edgetune: Callable[..., Ended], tmp_path: Path) -> None:
    ended = edgetune("plan", tmp_path / "nowhere", *NANO)
    assert (ended.code, len(ended.err.splitlines())) == (2, 1)
    assert "nowhere" in ended.err


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "photos", {f"{part}/{name}": 3 for part in ("train", "val") for name in ("a", "b")})


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model", "resnet50"], "--model resnet50"),
        (["--model", "vit_nano_patch8_64", "--image-size", "33"], "--image-size 33"),
        ([*NANO, "--memory", "lots"], "--memory 'lots' is not understood"),
        ([*NANO, "--energy", "5 parsecs"], "--energy '5 parsecs'"),
        ([*NANO, "--method", "magic"], "--method magic"),
        ([*NANO, "--method", "last-99"], "last-99"),
        ([*NANO, "--engine", "abacus"], "--engine abacus"),
        ([*NANO, "--profile", "missing.json"], "missing.json"),
        ([*NANO, "--config", "missing.toml"], "missing.toml"),
        ([], "--model is missing"),
    ],
)
def test_bad_options_are_exit_2_and_name_the_flag(
    edgetune: Callable[..., Ended], photos: Path, arguments: list[str], sentence: str
) -> None:
    ended = edgetune("plan", photos, *arguments)
    assert ended.code == 2
    assert sentence in ended.err
    assert "Traceback" not in ended.err


def test_no_plan_fits_is_exit_3_and_names_the_nearest(edgetune: Callable[..., Ended], photos: Path) -> None:
    ended = edgetune("plan", photos, *NANO, "--memory", "10MB", "--json")
    assert ended.code == 3
    nearest = json.loads(ended.out)["nearest_feasible"]["memory_bytes"]
    assert edgetune("plan", photos, *NANO, "--memory", str(nearest), "--json").code == 0
    assert edgetune("plan", photos, *NANO, "--memory", str(nearest - 2**20), "--json").code == 3


def test_debug_shows_the_traceback_wherever_it_stands(edgetune: Callable[..., Ended], tmp_path: Path) -> None:
    from edgetune.errors import InputError

    for arguments in (["--debug", "plan", tmp_path / "no"], ["plan", tmp_path / "no", "--debug"]):
        with pytest.raises(InputError):
            edgetune(*arguments, *NANO)


def test_every_option_has_its_flag_and_reaches_the_plan(
    edgetune: Callable[..., Ended], photos: Path, tmp_path: Path
) -> None:
    import inspect

    from edgetune.options import Options

    for command in (training.plan, training.fit):
        assert set(Options.__struct_fields__) <= set(inspect.signature(command).parameters)
    flags = "--no-augment --no-flip --evaluate-every 2 --patience 3 --lr 0.01 --seed 5 --threads 1 --method last-1"
    made = json.loads(edgetune("plan", photos, *NANO, *flags.split(), "--json").out)
    recipe = made["recipe"]
    assert (recipe["augment"], recipe["flip"], recipe["evaluate_every"], recipe["patience"]) == (False, False, 2, 3)
    assert (recipe["learning_rate"], made["seed"], made["threads"], made["method"]) == (0.01, 5, 1, "last-1")
    levers = "--lever trainer=lean --lever saved-precision=int8"
    made = json.loads(edgetune("plan", photos, *NANO, "--method", "last-1", *levers.split(), "--json").out)
    assert (made["trainer"], made["saved_precision"]) == ("lean", "int8")


def test_flags_win_over_the_config_file(edgetune: Callable[..., Ended], photos: Path, tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text('model = "vit_nano_patch8_64"\nimage-size = 32\nepochs = 7\nbatch-size = 2\n')
    made = json.loads(edgetune("plan", photos, "--config", config, "--epochs", "3", "--json").out)
    assert (made["epochs"], made["batch_size"], made["image_size"]) == (3, 2, 32)


@pytest.mark.parametrize("text", ["epoch = 3\n", 'epochs = "three"\n', "epochs = \n"])
def test_a_bad_config_file_is_named(edgetune: Callable[..., Ended], photos: Path, tmp_path: Path, text: str) -> None:
    config = tmp_path / "run.toml"
    config.write_text(text)
    ended = edgetune("plan", photos, *NANO, "--config", config)
    assert ended.code == 2
    assert "run.toml" in ended.err


def test_a_plan_and_a_conflicting_flag_are_exit_2(edgetune: Callable[..., Ended], photos: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    assert edgetune("plan", photos, *NANO, "--out", plan).code == 0
    ended = edgetune("fit", photos, "--plan", plan, "--epochs", "4", "--out", tmp_path / "run")
    assert ended.code == 2
    assert "--epochs" in ended.err
    ended = edgetune("fit", photos, "--plan", plan, "--lever", "optimizer=sgd", "--out", tmp_path / "run")
    assert ended.code == 2
    assert "--lever" in ended.err
    other = make_folder(tmp_path / "other", {"train/a": 2, "train/b": 2})
    ended = edgetune("fit", other, "--plan", plan, "--out", tmp_path / "run")
    assert ended.code == 2
    assert "was made for the DATA" in ended.err


def test_a_plan_and_flags_that_agree_with_it_are_no_conflict(
    edgetune: Callable[..., Ended], photos: Path, tmp_path: Path
) -> None:
    plan = tmp_path / "plan.json"
    flags = [*NANO, "--memory", "3GB", "--lr", "0.01", "--seed", "4"]
    assert edgetune("plan", photos, *flags, "--out", plan).code == 0
    ended = edgetune("fit", photos, *flags, "--plan", plan, "--dry-run")
    assert ended.code == 0, ended.err
    assert edgetune("fit", photos, *flags[:-1], "5", "--plan", plan, "--dry-run").code == 2


@pytest.mark.parametrize(
    "extra", [["--dry-run"], ["--config", "c.toml"], ["--plan", "p.json"], ["--epochs", "3"], ["--lever", "k=2"]]
)
def test_resume_takes_nothing_else(edgetune: Callable[..., Ended], tmp_path: Path, extra: list[str]) -> None:
    ended = edgetune("fit", "--resume", "--out", tmp_path / "run", *extra)
    assert ended.code == 2
    assert extra[0] in ended.err


def test_a_defect_is_one_sentence_and_exit_1(
    edgetune: Callable[..., Ended], photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import edgetune.plan.planner as planner

    def broken(*arguments: object) -> None:
        raise ZeroDivisionError("scripted")

    monkeypatch.setattr(planner, "scan", broken)
    ended = edgetune("plan", photos, *NANO)
    assert (ended.code, len(ended.err.splitlines())) == (1, 1)
    assert "--debug" in ended.err


def test_dry_run_prints_the_plan_and_makes_nothing(
    edgetune: Callable[..., Ended], photos: Path, tmp_path: Path
) -> None:
    ended = edgetune("fit", photos, *NANO, "--dry-run", "--out", tmp_path / "run")
    assert ended.code == 0
    assert "peak memory" in ended.out
    assert not (tmp_path / "run").exists()


def test_fit_without_a_run_folder_is_exit_2(edgetune: Callable[..., Ended], photos: Path) -> None:
    ended = edgetune("fit", photos, *NANO)
    assert ended.code == 2
    assert "--out is missing" in ended.err


def test_weights_of_another_architecture_are_refused_before_training(
    edgetune: Callable[..., Ended], photos: Path, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import save_file

    other = tmp_path / "other.safetensors"
    save_file({"blocks.0.norm1.weight": torch.ones(384), "pos_embed": torch.zeros(1, 50, 384)}, other)
    ended = edgetune("fit", photos, *NANO, "--weights", other, "--out", tmp_path / "run", "--quiet")
    assert (ended.code, len(ended.err.splitlines())) == (2, 1)
    assert "other.safetensors" in ended.err
    assert not (tmp_path / "run").exists()


def test_damaged_images_are_named_skipped_and_counted(
    edgetune: Callable[..., Ended], photos: Path, tmp_path: Path
) -> None:
    (photos / "train" / "a" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a photo")
    with Image.new("L", (20_000, 20_000)) as vast:
        vast.save(photos / "train" / "b" / "vast.png")
    weights = tmp_path / "nano.safetensors"
    _random_nano(weights)
    run = tmp_path / "run"
    ended = edgetune(
        "fit", photos, *NANO, "--weights", weights, "--epochs", "1", "--threads", "1", "--out", run, "--quiet"
    )
    assert ended.code == 0, ended.err
    warnings = json.loads((run / "result.json").read_text())["warnings"]
    assert sum("broken.jpg was skipped" in warning for warning in warnings) == 1
    assert sum("vast.png was skipped" in warning for warning in warnings) == 1


def test_a_class_whose_images_are_all_damaged_is_an_error(
    edgetune: Callable[..., Ended], photos: Path, tmp_path: Path
) -> None:
    for image in (photos / "train" / "a").iterdir():
        image.write_bytes(image.read_bytes()[:40])
    weights = tmp_path / "nano.safetensors"
    _random_nano(weights)
    ended = edgetune("fit", photos, *NANO, "--weights", weights, "--threads", "1", "--out", tmp_path / "r", "--quiet")
    assert ended.code == 2
    assert str(photos / "train" / "a") in ended.err


def _random_nano(path: Path) -> None:
    import torch

    from edgetune.model.registry import find_spec
    from edgetune.model.vit import VisionTransformer, initialise
    from edgetune.model.weights import save_weights

    torch.manual_seed(0)
    model = VisionTransformer(find_spec("vit_nano_patch8_64").at(32))
    initialise(model)
    save_weights(path, model, {})


def test_catalogue_models_and_samples_are_listed(edgetune: Callable[..., Ended], tmp_path: Path) -> None:
    assert "raspberry-pi-5" in edgetune("devices", "list").out
    assert "VDD_IN" in edgetune("devices", "show", "jetson-orin-nano").out
    assert json.loads(edgetune("devices", "show", "raspberry-pi-4b", "--json").out)["kind"] == "raspberry-pi"
    assert "vit_nano_patch8_64" in edgetune("models").out
    assert edgetune("sample-data", "digits", tmp_path / "digits").code == 0
    assert len(list((tmp_path / "digits").rglob("*.png"))) == 1797
    ended = edgetune("sample-data", "letters", tmp_path / "letters")
    assert ended.code == 2
    assert "digits" in ended.err
