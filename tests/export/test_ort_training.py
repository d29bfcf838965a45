"""Artifacts for onnxruntime-training: what can be known of them without it. tests/benchmarks trains with them."""

import subprocess
import sys

import msgspec
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from edgetune import schema
from edgetune.errors import InputError
from edgetune.export import export, ort_runtime
from edgetune.model.checkpoint import Checkpoint, find_checkpoint
from edgetune.model.registry import find_spec
from edgetune.plan import make_plan
from tests.project.facts import ROOT

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from edgetune.export import ort_training  # noqa: E402 — needs onnx
from edgetune.export.graph import build_graph  # noqa: E402
from edgetune.export.loss import add_loss  # noqa: E402

CASES = [
    ("vit_tiny_patch16_224", 48),
    ("deit_tiny_distilled_patch16_224", 32),
    ("deit3_small_patch16_224", 32),
    ("vit_small_patch14_dinov2", 42),
    ("vit_small_patch14_reg4_dinov2", 42),
    ("vit_wee_patch16_reg1_gap_256", 48),
]


@pytest.fixture
def plan(tmp_path):
    def make(method, *levers):
        for name in ("a", "b"):
            (tmp_path / "data" / name).mkdir(parents=True, exist_ok=True)
            for index in range(4):
                (tmp_path / "data" / name / f"{index}.png").write_bytes(b"not opened")
        return make_plan(tmp_path / "data", model="vit_nano_patch8_64", method=method, levers=levers, workers=0)

    return make


@pytest.fixture
def checkpoint(plan, tmp_path):
    def make(*arguments):
        found = plan(*arguments)
        spec = find_spec(found.model).at(None, 2)
        return Checkpoint(tmp_path / "best.safetensors", spec, ["a", "b"], found)

    return make


@pytest.mark.parametrize(("name", "image_size"), CASES)
def test_the_graph_keeps_every_parameter_as_timm_has_it(name, image_size, trained):
    _, model = trained(name, image_size)
    weights = {key: value.numpy() for key, value in model.state_dict().items()}
    proto = build_graph(model.spec, weights, {}, training=True)
    onnx.checker.check_model(proto, full_check=True)
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    for parameter in model.spec.parameters():
        np.testing.assert_array_equal(constants[parameter.name], weights[parameter.name])
    images = torch.randn(3, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = model(images).numpy()
    np.testing.assert_allclose(session.run(["logits"], {"images": images.numpy()})[0], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_torchs(smoothing, trained):
    _, model = trained("vit_tiny_patch16_224", 32)
    proto = build_graph(model.spec, {k: v.numpy() for k, v in model.state_dict().items()}, {}, training=True)
    add_loss(proto, smoothing)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    images, labels = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1)), torch.arange(5)
    loss, _ = session.run(None, {"images": images.numpy(), "labels": labels.numpy()})
    with torch.no_grad():
        expected = F.cross_entropy(model(images), labels, label_smoothing=smoothing)
    assert float(loss) == pytest.approx(float(expected), abs=1e-5)
    assert [output.name for output in proto.graph.output] == ["loss", "logits"]


def test_what_trains_is_what_the_plan_trains(plan):
    spec = find_spec("vit_nano_patch8_64")
    everything = [parameter.name for parameter in spec.parameters()]
    head = ["norm.weight", "norm.bias", "head.weight", "head.bias"]
    assert ort_training.trained_names(spec, None) == everything
    assert ort_training.trained_names(spec, plan("full")) == everything
    assert ort_training.trained_names(spec, plan("head")) == head
    last = ort_training.trained_names(spec, plan("last-2"))
    assert last == [name for name in everything if name.startswith(("blocks.4.", "blocks.5.")) or name in head]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("lora",), "no adapters"),
        (("alast",), "optimizer adam"),
        (("full", "optimizer=sgd"), "optimizer sgd"),
        (("full", "trainer=lean", "optimizer=sgd-plain"), "weight decay 0.05"),
    ],
)
def test_training_it_does_not_have_is_refused(arguments, said, checkpoint, tmp_path):
    with pytest.raises(InputError, match=said) as caught:
        ort_training.export_ort_training(None, checkpoint(*arguments), tmp_path / "out")
    assert "--engine onnx" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_the_plans_settings_reach_the_artifacts(checkpoint):
    found = checkpoint("last-2")
    choice = ort_training._choose(found)
    recipe = found.plan.recipe
    assert choice.label_smoothing == recipe.label_smoothing == 0.1
    assert choice.optimizer == schema.OrtOptimizer(
        kind="adamw", weight_decay=recipe.weight_decay, learning_rate=recipe.learning_rate
    )
    bare = found._replace(
        plan=msgspec.structs.replace(
            found.plan, optimizer="sgd-plain", recipe=msgspec.structs.replace(recipe, weight_decay=0.0)
        )
    )
    assert ort_training._choose(bare).optimizer.kind == "sgd-plain"


@pytest.mark.parametrize(
    ("system", "machine", "python", "said"),
    [
        ("Linux", "aarch64", (3, 11), "no wheel for aarch64 Linux"),
        ("Linux", "x86_64", (3, 13), "no wheel for Python 3.13"),
        ("Linux", "x86_64", (3, 11), "pip install"),
    ],
)
def test_where_it_is_missing_one_sentence_says_what_to_do(system, machine, python, said):
    sentence = ort_runtime._missing(system, machine, python)
    assert said in sentence
    assert "--engine onnx" in sentence
    assert sentence.count(". ") == 0
    assert sentence.endswith(".")


def test_the_command_says_so_and_writes_nothing(edgetune, trained, tmp_path):
    try:
        ort_runtime.import_training()
    except InputError:
        pass
    else:
        pytest.skip("onnxruntime-training is installed here")
    weights, _ = trained("vit_tiny_patch16_224", 48)
    ended = edgetune("export", weights, "--format", "ort-training", "--out", tmp_path / "out" / "artifacts")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("error: --format ort-training needs onnxruntime-training")
    assert len(ended.err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_beside_onnxruntime_it_is_found_to_be_overwritten(trained, tmp_path):
    weights, _ = trained("vit_tiny_patch16_224", 48)
    package = tmp_path / "site" / "onnxruntime"
    (package / "training" / "onnxblock").mkdir(parents=True)
    (package / "__init__.py").write_text("def set_default_logger_severity(level): pass\n")
    (package / "training" / "artifacts.py").write_text("from onnxruntime import GradientGraphBuilder\n")
    done = subprocess.run(
        [sys.executable, "-m", "edgetune", "export", weights, "--format", "ort-training", "--out", tmp_path / "out"],
        env={"PYTHONPATH": f"{tmp_path / 'site'}:{ROOT}", "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "one has overwritten the other" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_folder_of_something_else_is_left_alone(checkpoint, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"mine")
    (tmp_path / "file").write_bytes(b"mine")
    for out in (tmp_path / "photos", tmp_path / "file"):
        with pytest.raises(InputError, match="is no export for onnxruntime-training"):
            ort_training.export_ort_training(None, checkpoint("full"), out)
    assert (tmp_path / "photos" / "cat.png").read_bytes() == b"mine"


def test_weights_under_other_names_are_refused(trained, tmp_path, monkeypatch):
    from safetensors.torch import load_file, save_file

    shallow = lambda name: msgspec.structs.replace(find_spec(name), depth=2)  # noqa: E731
    monkeypatch.setattr("edgetune.model.checkpoint.find_spec", shallow)
    weights, model = trained("vit_tiny_patch16_224", 48)
    read = ort_training._read_weights(find_checkpoint(weights))
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(read[name], value.numpy())
    found = find_checkpoint(weights)
    others = load_file(weights)
    others["pos_embed"] = others["pos_embed"][:, 1:].contiguous()
    save_file(others, weights)
    with pytest.raises(InputError, match="1x9x192, which are no square grid"):
        ort_training._read_weights(found)


def test_nothing_else_needs_it():
    text = (ROOT / "pyproject.toml").read_text()
    assert "onnxruntime-training" not in text
    importing = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "edgetune").rglob("*.py")
        if "onnxruntime.training" in path.read_text() or "ort_runtime" in path.read_text()
    ]
    assert sorted(importing) == [
        "edgetune/export/__init__.py",
        "edgetune/export/ort_runtime.py",
        "edgetune/export/ort_training.py",
    ]


def test_the_format_is_asked_for_by_its_name():
    with pytest.raises(InputError, match="ort-training"):
        export("vit_nano_patch8_64", "ort", "x")
