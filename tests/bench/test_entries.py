"""Names, recipes and workloads: what can be asked for, and what is refused with a sentence."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgetune.bench import bench
from edgetune.bench.entries import DEFAULT_METHODS, find_entries, is_eager, read_recipes
from edgetune.bench.synthetic import make_images, make_weights
from edgetune.bench.workloads import WORKLOADS, choose, prepare
from edgetune.data.folder import scan
from edgetune.errors import InputError, MissingDependencyError
from edgetune.model.header import read_header
from edgetune.model.registry import find_spec
from edgetune.plan.methods import TRAINED_SHARE, find_method, with_levers

SPEC = find_spec("vit_nano_patch8_64")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[..., Path]:
    def write(text: str, name: str = "recipe.json") -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def test_the_usual_methods_and_all_recipes(recipe: Callable[..., Path]) -> None:
    recipes = read_recipes(
        recipe('{"lean": {"arguments": ["--memory", "1GB"]}, "edgetune": {"arguments": ["--lr", "1e-3"]}}')
    )
    entries = find_entries(None, recipes, SPEC)
    assert [entry.name for entry in entries] == [*DEFAULT_METHODS, "lean"]
    lean, ours = entries[-1], next(entry for entry in entries if entry.name == "edgetune")
    assert (lean.method, lean.arguments) == ("edgetune", ("--memory", "1GB"))
    assert ours.arguments == ("--lr", "1e-3")  # a recipe wins over the method of its name


def test_recipes_may_be_toml(recipe: Callable[..., Path]) -> None:
    path = recipe('[lean]\nmethod = "eager-full-trimmed"\narguments = ["--lr", "1e-4"]\n', "recipe.toml")
    (entry,) = find_entries(["lean"], read_recipes(path), SPEC)
    assert is_eager(entry)
    assert entry.environment["MALLOC_TRIM_THRESHOLD_"] == "131072"


@pytest.mark.parametrize(
    ("methods", "sentence"),
    [
        (["full", "magic"], "magic is unknown"),
        (["last-99"], "last-99 is unknown"),
        (["eager"], "eager is unknown"),
        (["full", "head", "full"], "full twice"),
        ([""], "an empty name"),
    ],
)
def test_wrong_names(methods: list[str], sentence: str) -> None:
    with pytest.raises(InputError, match=f"--methods.*{sentence}"):
        find_entries(methods, {}, SPEC)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[1, 2]", "is not a table"),
        ("{", "is not a table"),
        ('{"a": {"method": "full", "flags": []}}', "flags"),
        ('{"a": {"arguments": "--lr 1e-4"}}', "is not a table"),
        ('{"../a": {}}', "is no name"),
        ('{"a": {"arguments": ["--seed=3"]}}', "--seed=3, which all methods share"),
        ('{"a": {"arguments": ["--epochs", "9"]}}', "--epochs, which all methods share"),
    ],
)
def test_wrong_recipes(recipe: Callable[..., Path], text: str, sentence: str) -> None:
    with pytest.raises(InputError, match="--recipe") as raised:
        read_recipes(recipe(text))
    assert sentence in str(raised.value)


def test_a_recipe_of_an_unknown_method(recipe: Callable[..., Path]) -> None:
    recipes = read_recipes(recipe('{"mine": {"method": "magic"}}'))
    with pytest.raises(InputError, match="mine has the method magic"):
        find_entries(["mine"], recipes, SPEC)


def test_words_stand_for_what_is_possible_here(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("peft", "torchao") else real(name))
    names = [entry.name for entry in find_entries(["full", "all"], {}, SPEC)]
    assert names[0] == "full"
    assert len(names) == len(set(names))
    assert {"edgetune", "alast-lora", "random-k", "lora", "timm-checkpoint"} <= set(names)
    assert not {"peft-lora", "timm-adamw8bit"} & set(names)
    with pytest.raises(MissingDependencyError, match=r"peft.*edgetune\[bench\]"):
        find_entries(["peft-lora"], {}, SPEC)


@pytest.mark.parametrize("name", ["recipes.json", "levers.json", "ladder.json"])
def test_the_recipes_that_come_with_the_project_can_be_run(name: str) -> None:
    recipes = read_recipes(ROOT / "benchmarks" / name)
    spec = find_spec("vit_small_patch14_dinov2") if name == "ladder.json" else SPEC  # W1's
    for entry in find_entries(list(recipes), recipes, spec):
        levers = [word for word in entry.arguments if word != "--lever"]
        with_levers(find_method(entry.method, spec.depth), levers, spec.depth)


def test_a_missing_recipe_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.json"):
        read_recipes(tmp_path / "nowhere.json")


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "timm" else real(name))
    with pytest.raises(MissingDependencyError, match=r"edgetune\[bench\]"):
        find_entries(["eager-full"], {}, SPEC)
    assert find_entries(["full"], {}, SPEC)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "--data and --model"),
        ({"model": "vit_nano_patch8_64"}, "--data and --model"),
        ({"workload": "w9"}, "--workload w9"),
        ({"workload": "w1"}, "needs --data and --weights"),
        ({"workload": "w2", "data": Path("photos")}, "drop --data"),
        ({"workload": "w4", "model": "vit_tiny_patch16_224"}, "contradicts"),
        ({"workload": "w4", "weights": Path("nowhere.safetensors")}, r"nowhere\.safetensors"),
        ({"workload": "w4", "repetitions": 0}, "--repetitions 0"),
        ({"workload": "w4", "methods": ["magic"]}, "magic"),
    ],
)
def test_wrong_workloads_make_nothing(tmp_path: Path, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        bench(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_every_workload_is_a_model_we_know() -> None:
    for workload in WORKLOADS.values():
        assert find_spec(workload.model).at(workload.image_size).image_size == workload.image_size


def test_w4_brings_its_images(tmp_path: Path) -> None:
    job = prepare(tmp_path, "w4", choose("w4"), threads=1)
    settings = job.settings
    assert (settings.data, settings.classes, settings.epochs, settings.batch_size) == ("bundled: digits", 10, 3, 32)
    assert (settings.augment, settings.flip) == (True, False)
    assert job.data == tmp_path / "data"
    assert settings.train_images == len(scan(job.data).train)


def test_made_images_are_the_same_for_a_seed_and_small(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        make_images(tmp_path / name, image_size=64, classes=4, train=8, val=4, seed=seed)
    a, b, c = ([path.read_bytes() for path in sorted((tmp_path / name).rglob("*.jpg"))] for name in ("a", "b", "c"))
    assert a == b != c
    assert max(map(len, a)) < 8000
    folder = scan(tmp_path / "a")
    assert (len(folder.classes), len(folder.train), len(folder.val)) == (4, 8, 4)


def test_made_weights_fit_their_model(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    path = tmp_path / "weights.safetensors"
    make_weights(path, model="vit_nano_patch8_64", image_size=32, classes=3, seed=0)
    shapes = {parameter.name: parameter.shape for parameter in SPEC.at(32, 3).parameters()}
    assert read_header(path).shapes == shapes


def test_the_parent_of_all_runs_is_light() -> None:
    code = "import sys, edgetune.bench; print(*sorted({'torch', 'timm', 'numpy', 'PIL', 'rich'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize(
    ("model", "trained"), [("vit_nano_patch8_64", 1), ("vit_tiny_patch16_224", 2), ("vit_base_patch16_224", 2)]
)
def test_the_recipe_is_what_its_file_says(model: str, trained: int) -> None:
    note = read_recipes(ROOT / "benchmarks" / "recipes.json")["edgetune"].note
    assert note is not None
    spec = find_spec(model)
    method = find_method("edgetune", spec.depth)
    assert (method.trained, method.k, method.band) == (trained, trained, (1.0, 1.0))
    assert trained == max(1, round(spec.depth * TRAINED_SHARE)) == spec.depth // 6
    said = {
        "saved tensors in 8 bits": method.levers.saved_precision == "int8",
        "AdamW with factored state": (method.levers.optimizer, method.levers.optimizer_state) == ("adamw", "factored"),
        "frozen weights read from the disk": method.levers.frozen_weights == "disk",
        "cached in fp16 from plain images": (method.levers.feature_cache, method.levers.feature_views) == ("fp16", 1),
        "on all tokens": method.band == (1.0, 1.0),
        "the trailing sixth of the blocks, all of them in every step": method.k == method.trained,
    }
    for words, true in said.items():
        assert words in note
        assert true, words
