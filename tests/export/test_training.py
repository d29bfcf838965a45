"""Training graphs: what the folder holds, that they do what they say, and every way of spoiling it."""

from __future__ import annotations

import hashlib
import json
import shutil

import msgspec
import numpy as np
import pytest

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from edgetune import schema  # noqa: E402
from edgetune.device.system import System  # noqa: E402
from edgetune.errors import InputError  # noqa: E402
from edgetune.export import export  # noqa: E402
from edgetune.model.arrayfile import ArrayStore  # noqa: E402
from edgetune.plan import make_plan  # noqa: E402
from edgetune.train.fit import fit  # noqa: E402
from edgetune.train.onnx.exported import Manifest, check_copy, copy_graphs, open_folder, plan_of  # noqa: E402
from tests.project.facts import ROOT  # noqa: E402


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


def test_a_program_of_somebody_else_takes_the_same_steps(folder, tmp_path):
    from edgetune.data.loader import Batch
    from edgetune.train.onnx.cache import from_folder
    from edgetune.train.onnx.engine import OnnxEngine
    from tests.export.test_examples import alone

    rng = np.random.default_rng(0)
    images = rng.standard_normal((4, 4, 3, 64, 64), np.float32)
    labels = rng.integers(0, 2, (4, 4))
    np.savez(tmp_path / "batches.npz", images=images, labels=labels)
    done = alone(ROOT / "examples" / "train_with_graphs.py", folder / "graphs", tmp_path / "batches.npz")
    assert done.returncode == 0, done.stderr
    plan = msgspec.structs.replace(open_folder(folder / "graphs").plan, feature_cache=None)
    engine = OnnxEngine(plan, folder / "graphs" / "state.safetensors", from_folder(folder / "graphs" / "graphs"))
    rate = plan.recipe.learning_rate
    expected = [engine.train_step(Batch(*batch), rate, 4).loss for batch in zip(images, labels, strict=True)]
    assert json.loads(done.stdout) == pytest.approx(expected, rel=1e-5)
    assert expected[0] != pytest.approx(expected[-1], rel=1e-4)


def edit(folder, **changes):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# Names, inputs and outputs of all training graphs, digested: a change of one is another `INTERFACE`.
INTERFACES = {1: {None: "594e78272c28", 1.0: "b6d170e1163b"}}


@pytest.mark.parametrize("lora_scale", [None, 1.0])
def test_what_graphs_take_and_give_is_numbered(lora_scale):
    from edgetune.model.onnx_version import INTERFACE
    from edgetune.model.registry import find_spec
    from edgetune.train.onnx.graphs import builders

    facts = [
        (name, [value.name for value in graph.input], [value.name for value in graph.output])
        for optimizer in ("adamw", "adam", "sgd", "sgd-plain")
        for name, build in sorted(builders(find_spec("vit_nano_patch8_64").at(64, 2), optimizer, lora_scale).items())
        for graph in [build().model(name).graph]
    ]
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]
    assert INTERFACES[INTERFACE][lora_scale] == digest, "raise INTERFACE, and add its digests here"


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


def spoil_checksum(graphs, at):
    (graphs / "graphs" / "mlp.onnx").write_bytes(b"")
    return "mlp.onnx is not what"


def spoil_opset(graphs, at):
    edit(graphs, opset=18)
    return "opset 18"


def spoil_runtime(graphs, at):
    edit(graphs, onnxruntime="99.0")
    return "need onnxruntime 99.0"


def spoil_state(graphs, at):
    (graphs / "state.safetensors").unlink()
    return "lacks state.safetensors"


def spoil_classes(graphs, at):
    for part in ("train", "val"):
        (at / "data" / part / "b").rename(at / "data" / part / "c")
    return "other classes"


@pytest.mark.parametrize("changes", [{"optimizer": "sgd"}, {"weights": "others.safetensors"}, {"k": 1}])
def test_another_plan_is_refused(folder, tmp_path, changes):
    plan = schema.load(folder / "plan.json", schema.Plan)
    schema.save(msgspec.structs.replace(plan, **changes), tmp_path / "plan.json")
    with pytest.raises(InputError, match=rf"another plan .*\({next(iter(changes))}\)"):
        plan_of(folder / "graphs", str(folder / "data"), tmp_path / "plan.json")


def spoil_plan(graphs, at):
    plan = schema.load(graphs / "manifest.json", Manifest).plan
    schema.save(msgspec.structs.replace(plan, optimizer="sgd"), at / "plan.json")
    return "another plan"


def spoil_interface(graphs, at):
    edit(graphs, interface=0)
    return "take other inputs"


def everything(folder):
    """Every file below it, and what is in it."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "spoil",
    [spoil_checksum, spoil_opset, spoil_runtime, spoil_state, spoil_classes, spoil_plan, spoil_interface],
)
def test_the_command_line_refuses_in_one_sentence_and_writes_nothing(
    spoil, folder, copy, tmp_path, capsys, monkeypatch
):
    from edgetune.cli import main

    shutil.copytree(folder / "data", tmp_path / "data")
    said = spoil(copy, tmp_path)
    words = ["edgetune", "fit", str(tmp_path / "data"), "--graphs", str(copy), "--out", str(tmp_path / "run")]
    words += ["--plan", str(tmp_path / "plan.json")] if (tmp_path / "plan.json").exists() else []
    before = everything(tmp_path)
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert said in lines[0]
    assert everything(tmp_path) == before


def test_other_images_of_the_same_classes_may_be_trained_on(folder, tmp_path):
    """Graphs are made on one machine, and the images are on another."""
    plan = schema.load(folder / "plan.json", schema.Plan)
    cached = make_plan(folder / "data", model="vit_nano_patch8_64", engine="onnx", batch_size=4, disk_bytes=10_000_000)
    assert cached.feature_cache is not None
    schema.save(cached, tmp_path / "plan.json")
    export(tmp_path / "plan.json", "train-onnx", tmp_path / "graphs")
    shutil.copytree(folder / "data", tmp_path / "data")
    for number in range(4):
        more = tmp_path / "data" / "train" / "a"
        shutil.copy(more / "0.png", more / f"more{number}.png")
    found = plan_of(tmp_path / "graphs", str(tmp_path / "data"), None)
    assert (found.data.train_images, found.data.val_images) == (12, plan.data.val_images)
    again = make_plan(tmp_path / "data", model="vit_nano_patch8_64", engine="onnx", batch_size=4, disk_bytes=10_000_000)
    same = ("feature_cache", "steps_per_epoch", "total_steps", "data", "blocks")
    assert {name: getattr(found, name) for name in same} == {name: getattr(again, name) for name in same}
    assert found.recipe.warmup_steps == again.recipe.warmup_steps
    assert found.predicted.epoch_s is None
    result = fit(found, tmp_path / "run", graphs=tmp_path / "graphs", quiet=True)
    assert (result.stopped_by, result.work.images) == ("epochs", 12 * found.epochs)
    assert plan_of(tmp_path / "graphs", str(tmp_path / "data"), tmp_path / "run" / "plan.json").data == found.data
    assert plan_of(tmp_path / "graphs", str(folder / "data"), None).feature_cache == cached.feature_cache
    for number in range(400):
        shutil.copy(more / "0.png", more / f"many{number}.png")
    with pytest.raises(InputError, match="--disk"):
        plan_of(tmp_path / "graphs", str(tmp_path / "data"), None)


def test_a_plan_of_the_lean_trainer_in_fp32_may_be_exported_and_given_again(folder, tmp_path):
    levers = ["trainer=lean", "frozen_weights=disk", "saved_precision=fp32", "optimizer_state=fp32"]
    plan = make_plan(
        folder / "data", model="vit_nano_patch8_64", method="last-2", engine="torch", batch_size=4, levers=levers
    )
    schema.save(plan, tmp_path / "plan.json")
    export(tmp_path / "plan.json", "train-onnx", tmp_path / "graphs")
    found = plan_of(tmp_path / "graphs", str(folder / "data"), tmp_path / "plan.json")
    assert found.engine == "onnx"
    schema.save(msgspec.structs.replace(plan, device="cuda"), tmp_path / "cuda.json")
    with pytest.raises(InputError, match="a plan for cuda"):
        export(tmp_path / "cuda.json", "train-onnx", tmp_path / "out")
    with pytest.raises(InputError, match="a plan for cuda"):
        plan_of(tmp_path / "graphs", str(folder / "data"), tmp_path / "cuda.json")


def test_an_empty_folder_is_filled_where_it_is(folder, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir(mode=0o750)
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    export(folder / "plan.json", "train-onnx", tmp_path / "link")
    open_folder(tmp_path / "mine")
    assert (tmp_path / "mine").stat().st_mode & 0o777 == 0o750
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    export(folder / "plan.json", "train-onnx", ".")
    open_folder(tmp_path / "here")
    monkeypatch.setattr("edgetune.export.training.write_graphs", lambda *order: 1 / 0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ZeroDivisionError):
        export(folder / "plan.json", "train-onnx", tmp_path / "empty")
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_manifest_that_forgets_a_file_is_refused(copy):
    manifest = schema.load(copy / "manifest.json", Manifest)
    edit(copy, checksums={name: value for name, value in manifest.checksums.items() if name != "evaluate.onnx"})
    with pytest.raises(InputError, match=r"no checksum of evaluate\.onnx"):
        open_folder(copy)


def test_a_graph_that_the_manifest_does_not_know_is_refused(copy):
    manifest = schema.load(copy / "manifest.json", Manifest)
    known = {name: value for name, value in manifest.checksums.items() if name != "graphs/mlp.onnx"}
    graphs = {name: msgspec.to_builtins(value) for name, value in manifest.graphs.items() if name != "mlp"}
    edit(copy, checksums=known, graphs=graphs)
    with pytest.raises(InputError, match=r"no checksum of graphs/mlp\.onnx"):
        open_folder(copy)
    edit(copy, checksums={name: manifest.checksums[name] for name in ("state.safetensors",)}, graphs={})
    shutil.rmtree(copy / "graphs")
    with pytest.raises(InputError, match=r"no checksum of evaluate\.onnx"):
        open_folder(copy)


def test_a_run_holds_its_copy_of_the_graphs_to_the_manifest(folder, copy, tmp_path):
    plan = plan_of(copy, str(folder / "data"), None)
    (copy / "graphs" / "mlp.onnx").write_bytes(b"altered meanwhile")
    with pytest.raises(InputError, match=r"mlp\.onnx is not what"):
        fit(plan, tmp_path / "refused", graphs=copy, quiet=True)
    copy_graphs(folder / "graphs", tmp_path / "run")
    check_copy(tmp_path / "run")
    (tmp_path / "run" / "mlp.onnx").write_bytes(b"altered meanwhile")
    with pytest.raises(InputError, match=r"mlp\.onnx is not what manifest\.json says; go on with --engine torch"):
        check_copy(tmp_path / "run")
    (tmp_path / "run" / "manifest.json").unlink()
    with pytest.raises(InputError, match="has no manifest"):
        check_copy(tmp_path / "run")


def test_graphs_run_under_the_limits_of_the_machine_that_runs_them(folder, tmp_path):
    small = System(tmp_path)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 400000 kB\nMemAvailable: 200000 kB\n")
    found = plan_of(folder / "graphs", str(folder / "data"), None, small)
    assert found.caps.memory_bytes == int(0.9 * 200_000 * 1024)
    assert "less than where the graphs were made" in found.why[0]
    asked = make_plan(
        folder / "data",
        model="vit_nano_patch8_64",
        method="last-2",
        engine="onnx",
        batch_size=4,
        memory_bytes=300 << 20,
    )
    schema.save(asked, tmp_path / "plan.json")
    found = plan_of(folder / "graphs", str(folder / "data"), tmp_path / "plan.json", small)
    assert found.caps.memory_bytes == 300 << 20


def test_what_can_not_be_exported(folder, tmp_path):
    with pytest.raises(InputError, match="exists already"):
        export(folder / "plan.json", "train-onnx", folder / "graphs")
    torch_plan = make_plan(folder / "data", model="vit_nano_patch8_64", engine="torch", batch_size=4)
    schema.save(torch_plan, tmp_path / "plan.json")
    with pytest.raises(InputError, match="plan with --engine onnx"):
        export(tmp_path / "plan.json", "train-onnx", tmp_path / "out")
    for source in ("vit_nano_patch8_64", folder / "graphs" / "state.safetensors"):
        with pytest.raises(InputError, match="no run folder and no plan"):
            export(source, "train-onnx", tmp_path / "out")
    with pytest.raises(InputError, match="--weights is for a model given by name"):
        export(folder / "plan.json", "train-onnx", tmp_path / "out", weights=folder / "plan.json")
    gone = msgspec.structs.replace(schema.load(folder / "plan.json", schema.Plan), weights=str(tmp_path / "gone"))
    schema.save(gone, tmp_path / "gone.json")
    with pytest.raises(InputError, match="gone"):
        export(tmp_path / "gone.json", "train-onnx", tmp_path / "new" / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"plan.json", "gone.json"}
