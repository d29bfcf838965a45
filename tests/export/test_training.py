"""Training graphs: what the folder holds, that they do what they say, and every way of spoiling it."""

from __future__ import annotations

import json
import shutil

import msgspec
import numpy as np
import pytest

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from edgetune import schema  # noqa: E402
from edgetune.errors import InputError  # noqa: E402
from edgetune.export import export  # noqa: E402
from edgetune.model.arrayfile import ArrayStore  # noqa: E402
from edgetune.plan import make_plan  # noqa: E402
from edgetune.train.onnx.exported import Manifest, open_folder, plan_of  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An export of a plan, the images it is for, and the plan's file."""
    from PIL import Image

    at = tmp_path_factory.mktemp("training")
    for part in ("train", "val"):
        for name in ("a", "b"):
            (at / "data" / part / name).mkdir(parents=True)
            for index in range(4):
                Image.new("RGB", (64, 64), (40 * index, 9, 9)).save(at / "data" / part / name / f"{index}.png")
    plan = make_plan(at / "data", model="vit_nano_patch8_64", method="last-2", engine="onnx", batch_size=4, threads=1)
    schema.save(plan, at / "plan.json")
    report = export(at / "plan.json", "train-onnx", at / "graphs")
    assert report.size_bytes > 1e6
    return at


@pytest.fixture
def copy(folder, tmp_path):
    shutil.copytree(folder / "graphs", tmp_path / "graphs")
    return tmp_path / "graphs"


def test_the_folder_says_everything_about_itself(folder):
    manifest = open_folder(folder / "graphs")
    assert manifest.classes == ["a", "b"]
    assert manifest.plan.engine == "onnx"
    assert manifest.preprocessing["image_size"] == 64
    assert {"update", "loss", "evaluate", "attention.save"} <= set(manifest.graphs)
    update = manifest.graphs["update"]
    assert {"learning_rate", "step"} <= {tensor.name for tensor in update.inputs}
    assert plan_of(folder / "graphs", str(folder / "data"), folder / "plan.json").data.path == str(folder / "data")


def test_the_evaluation_graph_is_the_model(folder):
    import torch

    from edgetune.model.weights import build_model

    manifest = open_folder(folder / "graphs")
    session = onnxruntime.InferenceSession(folder / "graphs" / "evaluate.onnx", providers=["CPUExecutionProvider"])
    store = ArrayStore(folder / "graphs" / "state.safetensors")
    images = np.random.default_rng(0).standard_normal((3, 3, 64, 64), np.float32)
    found = session.run(["logits"], {name: store.read_array(name) for name in store.names} | {"images": images})[0]
    from edgetune.model.registry import find_spec

    spec = find_spec(manifest.model).at(64, 2)
    model, _ = build_model(spec, folder / "graphs" / "state.safetensors", class_names=manifest.classes)
    with torch.inference_mode():
        np.testing.assert_allclose(found, model(torch.from_numpy(images)).numpy(), atol=1e-4)


def edit(folder, **changes):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_bad_input(folder, copy, tmp_path):
    data = str(folder / "data")
    with pytest.raises(InputError, match="has no manifest"):
        open_folder(tmp_path)
    edit(copy, opset=18)
    with pytest.raises(InputError, match="opset 18"):
        plan_of(copy, data, None)
    edit(copy, opset=17, onnxruntime="99.0")
    with pytest.raises(InputError, match=r"need onnxruntime 99\.0"):
        plan_of(copy, data, None)
    edit(copy, onnxruntime="1.19")
    with pytest.raises(InputError, match="DATA is missing"):
        plan_of(copy, None, None)
    other = tmp_path / "other"
    shutil.copytree(folder / "data", other)
    for part in ("train", "val"):
        (other / part / "b").rename(other / part / "c")
    with pytest.raises(InputError, match="other classes"):
        plan_of(copy, str(other), None)
    plan = schema.load(folder / "plan.json", schema.Plan)
    schema.save(msgspec.structs.replace(plan, optimizer="sgd"), tmp_path / "sgd.json")
    with pytest.raises(InputError, match=r"another plan .*optimizer"):
        plan_of(copy, data, tmp_path / "sgd.json")
    (copy / "state.safetensors").rename(copy / "elsewhere")
    with pytest.raises(InputError, match=r"lacks state\.safetensors"):
        plan_of(copy, data, None)
    (copy / "state.safetensors").write_bytes((copy / "elsewhere").read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match=r"state\.safetensors is not what"):
        plan_of(copy, data, None)


def test_a_manifest_that_forgets_a_file_is_refused(copy):
    manifest = schema.load(copy / "manifest.json", Manifest)
    edit(copy, checksums={name: value for name, value in manifest.checksums.items() if name != "evaluate.onnx"})
    with pytest.raises(InputError, match=r"no checksum of evaluate\.onnx"):
        open_folder(copy)


def test_what_can_not_be_exported(folder, tmp_path):
    with pytest.raises(InputError, match="exists already"):
        export(folder / "plan.json", "train-onnx", folder / "graphs")
    torch_plan = make_plan(folder / "data", model="vit_nano_patch8_64", engine="torch", batch_size=4)
    schema.save(torch_plan, tmp_path / "plan.json")
    with pytest.raises(InputError, match="plan with --engine onnx"):
        export(tmp_path / "plan.json", "train-onnx", tmp_path / "out")
    assert not (tmp_path / "out").exists()
