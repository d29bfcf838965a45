import json

import msgspec
import numpy as np
import pytest
import torch

from edgetune.data.preprocess import normalise, read
from edgetune.errors import InputError, MissingDependencyError
from edgetune.export import export
from edgetune.model.registry import find_spec

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

CASES = [
    ("vit_tiny_patch16_224", 48),
    ("deit_tiny_distilled_patch16_224", 32),
    ("deit3_small_patch16_224", 32),
    ("vit_small_patch14_dinov2", 42),
    ("vit_small_patch14_reg4_dinov2", 42),
    ("vit_wee_patch16_reg1_gap_256", 48),
]


@pytest.fixture(autouse=True)
def _shallow(monkeypatch):
    """Checkpoints of the tests are two blocks deep."""
    shallow = lambda name: msgspec.structs.replace(find_spec(name), depth=2)  # noqa: E731
    monkeypatch.setattr("edgetune.model.checkpoint.find_spec", shallow)


def run(path, images):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"images": images})[0]


@pytest.mark.parametrize(("name", "image_size"), CASES)
def test_onnx_is_the_model_for_any_batch_size(name, image_size, trained, photos, tmp_path):
    weights, model = trained(name, image_size)
    report = export(weights, "onnx", tmp_path / "out" / "model.onnx", images=photos)
    assert report.images == 5
    assert report.max_abs_difference is not None
    assert report.max_abs_difference < 1e-5
    assert report.same_answer == 1
    assert "model.onnx" in report.sentence
    for batch in (1, 3):
        images = torch.randn(batch, 3, image_size, image_size, generator=torch.Generator().manual_seed(batch))
        with torch.no_grad():
            expected = model(images).numpy()
        np.testing.assert_allclose(run(report.path, images.numpy()), expected, rtol=0, atol=1e-5)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.onnx"]


def test_the_graph_is_small_and_says_how_to_feed_it(trained, photos, tmp_path):
    weights, model = trained("vit_tiny_patch16_224", 48)
    export(weights, "onnx", tmp_path / "model.onnx", images=photos)
    proto = onnx.load(tmp_path / "model.onnx")
    assert {opset.domain: opset.version for opset in proto.opset_import} == {"": 17}
    assert len(proto.graph.node) < 15 + 2 * 40
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    assert json.loads(metadata["classes"]) == [f"class {index}" for index in range(7)]
    # a stranger who follows the metadata gets the same answer
    mean, std = json.loads(metadata["mean"]), json.loads(metadata["std"])
    images = normalise(read(str(photos[0]), int(metadata["image_size"]))[None], mean, std)
    with torch.no_grad():
        expected = model(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(run(tmp_path / "model.onnx", images), expected, rtol=0, atol=1e-5)
    assert not np.allclose(expected.sum(1), 1)


def test_int8_is_smaller_and_still_answers_the_same(trained, photos, tmp_path):
    weights, _ = trained("vit_tiny_patch16_224", 48)
    full = export(weights, "onnx", tmp_path / "full.onnx", images=photos)
    small = export(weights, "onnx-int8", tmp_path / "small.onnx", images=photos)
    assert small.size_bytes < 0.45 * full.size_bytes
    assert small.max_abs_difference is not None
    assert 0 < small.max_abs_difference < 0.5
    assert {"MatMulInteger"} <= {node.op_type for node in onnx.load(tmp_path / "small.onnx").graph.node}
    assert sorted(path.name for path in tmp_path.glob("*.onnx")) == ["full.onnx", "small.onnx"]


def test_without_images_the_bundled_digits_are_compared(trained, tmp_path):
    weights, _ = trained("vit_tiny_patch16_224", 48)
    report = export(weights, "onnx", tmp_path / "model.onnx")
    assert (report.images, report.images_from) == (16, "the bundled digits")


def test_a_wrong_graph_leaves_no_file(trained, photos, tmp_path, monkeypatch):
    from edgetune.export.graph import build_graph

    weights, _ = trained("vit_tiny_patch16_224", 48)
    (tmp_path / "model.onnx").write_bytes(b"the former one")

    def wrong(spec, weights, metadata):
        return build_graph(spec, weights | {"head.bias": weights["head.bias"] + 0.01}, metadata)

    monkeypatch.setattr("edgetune.export.onnx.build_graph", wrong)
    with pytest.raises(AssertionError, match=r"differs from torch by 0\.01"):
        export(weights, "onnx", tmp_path / "model.onnx", images=photos)
    assert (tmp_path / "model.onnx").read_bytes() == b"the former one"
    assert not list(tmp_path.glob(".*"))


def test_8_bits_that_ruin_the_model_are_refused(trained, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("edgetune.export.onnx._LARGEST_INT8_DIFFERENCE", 1e-6)
    weights, _ = trained("vit_tiny_patch16_224", 48)
    with pytest.raises(InputError, match="--format onnx"):
        export(weights, "onnx-int8", tmp_path / "model.onnx", images=photos)
    assert not (tmp_path / "model.onnx").exists()


def test_bad_input(trained, photos, tmp_path, monkeypatch):
    weights, _ = trained("vit_tiny_patch16_224", 48)
    with pytest.raises(InputError, match="use onnx, onnx-int8, timm"):
        export(weights, "tflite", tmp_path / "x")
    with pytest.raises(InputError, match="is a folder"):
        export(weights, "onnx", tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        export(tmp_path / "nowhere", "onnx", tmp_path / "x.onnx")
    with pytest.raises(InputError, match="can't be read"):
        export(weights, "onnx", tmp_path / "x.onnx", images=[weights])


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime"])
def test_without_onnx_the_extra_is_named(missing, trained, tmp_path, monkeypatch):
    import sys

    weights, _ = trained("vit_tiny_patch16_224", 48)
    for name in list(sys.modules):
        if name.startswith(("edgetune.export.", missing + ".")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'edgetune\[onnx\]'"):
        export(weights, "onnx", tmp_path / "x.onnx")


def test_a_model_by_name_with_the_weights_it_comes_with(photos, tmp_path, monkeypatch):
    monkeypatch.undo()  # the whole model
    report = export("vit_nano_patch8_64", "onnx", tmp_path / "model.onnx", images=photos)
    assert report.max_abs_difference < 1e-4
    metadata = {entry.key: entry.value for entry in onnx.load(tmp_path / "model.onnx").metadata_props}
    assert json.loads(metadata["classes"])[:2] == ["airplane", "automobile"]


def test_a_model_by_name_with_weights_of_a_file_that_names_no_classes(trained, photos, tmp_path):
    from safetensors.torch import load_file, save_file

    weights, _ = trained("vit_tiny_patch16_224", 224, classes=12)
    save_file(load_file(weights), tmp_path / "bare.safetensors")
    export("vit_tiny_patch16_224", "onnx", tmp_path / "m.onnx", weights=tmp_path / "bare.safetensors", images=photos)
    metadata = {entry.key: entry.value for entry in onnx.load(tmp_path / "m.onnx").metadata_props}
    assert json.loads(metadata["classes"]) == [str(index) for index in range(12)]


def test_bad_models(trained, edgetune, tmp_path):
    from safetensors.torch import load_file, save_file

    weights, _ = trained("vit_tiny_patch16_224", 48)
    headless = tmp_path / "headless.safetensors"
    save_file({name: value for name, value in load_file(weights).items() if not name.startswith("head")}, headless)
    out = tmp_path / "out" / "model.onnx"
    for arguments, said in (
        (["vit_tinny_patch16_224"], "no model's name"),
        ([weights, "--weights", weights], "leave one out"),
        (["vit_tiny_patch16_224", "--weights", headless], "has no classifier"),
        (["deit3_small_patch16_224", "--weights", weights], "deit3_small_patch16_224"),
        (["vit_tiny_patch16_224", "--weights", tmp_path / "none.safetensors"], "does not exist"),
    ):
        ended = edgetune("export", *arguments, "--out", out)
        assert (ended.code, ended.out) == (2, "")
        assert said in ended.err
        assert len(ended.err.splitlines()) == 1
    assert not out.parent.exists()
