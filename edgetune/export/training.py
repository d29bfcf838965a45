"""Training graphs: the step of a plan as ONNX, for `edgetune fit --graphs` and for programs of other people's."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import onnx

from edgetune import schema
from edgetune.__about__ import __version__
from edgetune.data.sizes import IN_WORDS
from edgetune.errors import InputError
from edgetune.files import atomic_folder, sha256, write_atomically
from edgetune.model.arrayfile import ArrayStore, copy_arrays
from edgetune.model.onnx_version import INTERFACE, OLDEST_ONNXRUNTIME, OPSET
from edgetune.model.reading import write_base
from edgetune.model.registry import find_spec
from edgetune.plan.engines import refuse_levers
from edgetune.plan.job import levers_of
from edgetune.schema import ExportReport, Plan, now
from edgetune.train.onnx.edges import evaluation
from edgetune.train.onnx.exported import EVALUATE, GRAPHS, MANIFEST, STATE, GraphFile, Manifest, Tensor
from edgetune.train.onnx.write import Order, write_graphs


def export_training(source: Path, out: Path) -> ExportReport:
    """Write the folder that `edgetune.train.onnx.exported` describes.

    Args:
        source: a run folder, whose plan is taken and whose weights from before the run, or its best where those are
            gone; or a plan file, whose weights are read as `fit` would.
        out: the folder, which must not exist yet or be empty.

    Raises:
        InputError: the source has no plan, or one that this engine can't train, or the folder is taken.
    """
    plan = schema.load(_plan_file(source), Plan)
    refuse_levers(levers_of(plan), "plan with --engine onnx")
    if plan.device != "cpu":
        raise InputError(
            f"{source} is a plan for {plan.device}, which these graphs don't run on; plan with --engine onnx."
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"--out {out} exists already; choose another folder.")
    missing = [folder for folder in out.absolute().parents if not folder.exists()]  # the nearest first
    try:
        if out.is_dir():  # it may be a mount, or of its owner's own mode: filled where it is
            size = _write(source, plan, out)
        else:
            with atomic_folder(out) as scratch:
                size = _write(source, plan, scratch)
    except BaseException:
        for path in out.iterdir() if out.is_dir() else ():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()
        raise
    return ExportReport(
        format="train-onnx",
        path=str(out),
        size_bytes=size,
        how_to_use=f"`edgetune fit DATA --graphs {out} --out RUN`",
        edgetune_version=__version__,
        created=now(),
    )


def _plan_file(source: Path) -> Path:
    """The plan of a run folder, or the file itself.

    Raises:
        InputError: it is neither, a model's name or its weights perhaps, which say nothing of how to train.
    """
    if source.is_dir():
        return source / "plan.json"
    if not source.exists() or source.suffix == ".safetensors":
        raise InputError(
            f"{source} is no run folder and no plan, and training graphs need one: `edgetune plan DATA --model NAME"
            " --engine onnx --out plan.json`, then give plan.json."
        )
    return source


def _write(source: Path, plan: Plan, out: Path) -> int:
    spec = find_spec(plan.model).at(plan.image_size, len(plan.data.classes))
    plan = msgspec.structs.replace(plan, engine="onnx")
    _write_state(source, plan, out / STATE)
    write_graphs(out / GRAPHS, Order(spec, plan.optimizer, plan.lora))
    write_atomically(out / EVALUATE, evaluation(spec).model("evaluate").SerializeToString())
    files = sorted(path for path in out.rglob("*") if path.is_file())
    graphs = {path.stem: path for path in files if path.suffix == ".onnx"}
    manifest = Manifest(
        model=spec.name,
        plan=plan,
        classes=list(plan.data.classes),
        preprocessing={
            "image_size": spec.image_size,
            "mean": list(spec.mean),
            "std": list(spec.std),
            "text": IN_WORDS,
        },
        opset=OPSET,
        onnxruntime=".".join(map(str, OLDEST_ONNXRUNTIME)),
        graphs={name: _described(path, out) for name, path in graphs.items()},
        checksums={str(path.relative_to(out)): sha256(path) for path in files},
        edgetune_version=__version__,
        created=now(),
        interface=INTERFACE,
    )
    schema.save(manifest, out / MANIFEST)
    return sum(path.stat().st_size for path in out.rglob("*") if path.is_file())


def _write_state(source: Path, plan: Plan, target: Path) -> None:
    """The weights to begin with, in float32."""
    spec = find_spec(plan.model).at(plan.image_size, len(plan.data.classes))
    before, best = source / "state" / "base.safetensors", source / "best.safetensors"
    for path in (before, best) if source.is_dir() else ():
        if path.exists():
            with ArrayStore(path) as store:
                if set(store.names) == {parameter.name for parameter in spec.parameters()}:
                    copy_arrays(target, store, {}, store.header.metadata)
                    return
    write_base(
        spec, Path(plan.weights) if plan.weights else None, target, class_names=plan.data.classes, seed=plan.seed
    )


def _described(path: Path, out: Path) -> GraphFile:
    graph = onnx.load_model(path).graph
    return GraphFile(
        file=str(path.relative_to(out)),
        inputs=[_tensor(value) for value in graph.input],
        outputs=[_tensor(value) for value in graph.output],
    )


def _tensor(value: Any) -> Tensor:
    kind = value.type.tensor_type
    shape: list[int | str] = [side.dim_param or side.dim_value for side in kind.shape.dim]
    return Tensor(name=value.name, type=onnx.TensorProto.DataType.Name(kind.elem_type).lower(), shape=shape)
