"""Artifacts for onnxruntime-training: a gradient graph, an evaluation graph, an update and a checkpoint.

Its Python API and its C, C++, Swift and Kotlin bindings train with these four files. The package is no longer developed
(the last release is 1.19.2), has wheels for few platforms, and owns the same module as `onnxruntime`, so the two never
share an environment and nothing else of edgetune needs it; torch is not needed either. The forward graph is the one of
`edgetune.export.graph`, with the loss written behind it; which parameters train is the plan's choice. What the
artifacts cannot do: draw blocks, drop tokens, keep adapters. They train the same parameters at every step, on all
tokens.

https://onnxruntime.ai/docs/api/python/on_device_training/training_artifacts.html
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata as packages
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from edgetune import schema
from edgetune.__about__ import __version__
from edgetune.data.sizes import IN_WORDS
from edgetune.errors import InputError
from edgetune.export.check import Comparison, Images, compare, real_images
from edgetune.export.graph import INPUT, OUTPUT, build_graph
from edgetune.export.loss import LABELS, LOSS, add_loss
from edgetune.export.ort_runtime import Runtime
from edgetune.files import atomic_folder, sha256
from edgetune.model.checkpoint import Checkpoint
from edgetune.model.onnx_graph import IR_VERSION
from edgetune.model.reading import read_arrays
from edgetune.model.spec import ViTSpec

TRAINING, EVALUATION, UPDATE, CHECKPOINT = (
    "training_model.onnx",
    "eval_model.onnx",
    "optimizer_model.onnx",
    "checkpoint",
)
MANIFEST = "edgetune.json"
_FILES = frozenset({TRAINING, EVALUATION, UPDATE, CHECKPOINT, MANIFEST})
_PACKAGES = ("onnxruntime-training-cpu", "onnxruntime-training")
_LARGEST_DIFFERENCE = 1e-3  # of logits and loss to the inference graph's, relative to the largest logit


class _Choice(NamedTuple):
    """What the plan says about training, or full fine-tuning with AdamW where there is no plan."""

    trained: list[str]
    label_smoothing: float = 0.0
    optimizer: schema.OrtOptimizer = schema.OrtOptimizer(kind="adamw", weight_decay=0.05, learning_rate=None)


def export_ort_training(
    runtime: Runtime, checkpoint: Checkpoint, out: Path, *, images: Sequence[Path] | None = None
) -> schema.ExportReport:
    """Write the artifacts and `edgetune.json`, which says how to feed them, into a folder of their own.

    Args:
        runtime: the module that `edgetune.export.ort_runtime` found.
        checkpoint: the weights to go on from; its plan says what trains.
        out: the folder.
        images: what the artifacts' answers are compared on, with those of the graph exported for inference.

    Raises:
        InputError: onnxruntime-training has no such training as the plan asks for, or `out` can't be used.
        AssertionError: the artifacts are not the model, which is a defect.
    """
    if out.exists() and (not out.is_dir() or any(path.name not in _FILES for path in out.iterdir())):
        raise InputError(f"--out {out} exists and is no export for onnxruntime-training; name a new folder.")
    spec, choice = checkpoint.spec, _choose(checkpoint)
    weights = _read_weights(checkpoint)
    sample = real_images(checkpoint, images)
    model = build_graph(spec, weights, {}, training=True)
    add_loss(model, choice.label_smoothing)
    onnx.checker.check_model(model)
    frozen = [name for name in weights if name not in set(choice.trained)]
    with atomic_folder(out) as folder:
        _generate(runtime, model, choice, frozen, folder)
        found = _compare(runtime, folder, build_graph(spec, weights, {}), sample, choice.label_smoothing)
        manifest = _manifest(checkpoint, choice, frozen, folder)
        schema.save(manifest, folder / MANIFEST)
    return schema.ExportReport(
        format="ort-training",
        path=str(out),
        size_bytes=sum((out / name).stat().st_size for name in _FILES),
        images=len(sample.values),
        images_from=sample.source,
        max_abs_difference=found.max_abs_difference,
        same_answer=found.same_answer,
        compared_with="the inference graph",
        how_to_use=(
            f"onnxruntime-training: {len(choice.trained)} of {len(weights)} parameters train, at every step and on all"
            " tokens"
        ),
        edgetune_version=__version__,
        created=schema.now(),
    )


def trained_names(spec: ViTSpec, plan: schema.Plan | None) -> list[str]:
    """Parameters that a plan may train, in the model's order; all of them where there is no plan."""
    if plan is None:
        return [parameter.name for parameter in spec.parameters()]
    parts = [tuple(spec.embedding_parameters())] if plan.embeddings_trainable else []
    parts += [spec.block_parameters(block.index) for block in plan.blocks if block.trainable]
    return [parameter.name for part in [*parts, spec.head_parameters()] for parameter in part]


def _choose(checkpoint: Checkpoint) -> _Choice:
    """What is to train and how.

    Raises:
        InputError: onnxruntime-training has no such training.
    """
    plan = checkpoint.plan
    if plan is None:
        return _Choice(trained_names(checkpoint.spec, None))
    instead = (
        "fine-tune with another method or optimizer, or without onnxruntime-training by `edgetune fit --engine onnx`"
    )
    if plan.lora is not None:
        raise InputError(
            f"{checkpoint.path} was trained with --method {plan.method}, and --format ort-training has no"
            f" adapters: {instead}."
        )
    decay = plan.recipe.weight_decay
    if plan.optimizer != "adamw" and not (plan.optimizer == "sgd-plain" and not decay):
        raise InputError(
            f"{checkpoint.path} was trained with the optimizer {plan.optimizer} and weight decay {decay:g},"
            f" and --format ort-training has AdamW and plain SGD without decay only: {instead}."
        )
    update = schema.OrtOptimizer(kind=plan.optimizer, weight_decay=decay, learning_rate=plan.recipe.learning_rate)
    return _Choice(trained_names(checkpoint.spec, plan), plan.recipe.label_smoothing, update)


def _read_weights(checkpoint: Checkpoint) -> dict[str, NDArray[np.float32]]:
    """All parameters in float32, without torch.

    Raises:
        InputError: the file does not hold them, or another number of classes.
    """
    report, arrays = read_arrays(checkpoint.spec, checkpoint.path)
    if report.fresh_head:
        raise InputError(
            f"{checkpoint.path} has a classifier of {report.classes_in_file} classes, not {checkpoint.spec.classes};"
            " give the run folder that `edgetune fit --out` made."
        )
    return dict(arrays)


def _generate(runtime: Runtime, model: onnx.ModelProto, choice: _Choice, frozen: list[str], folder: Path) -> None:
    """Let onnxruntime-training derive the gradient graph and write its files."""
    blocks = runtime.blocks
    if choice.optimizer.kind == "adamw":
        update = blocks.optim.AdamW(betas=(0.9, 0.999), eps=1e-8, weight_decay=choice.optimizer.weight_decay)
    else:
        update = blocks.optim.SGD()
    with _silent():
        runtime.artifacts.generate_artifacts(
            model,
            requires_grad=choice.trained,
            frozen_params=frozen,
            loss_input_names=[LOSS],
            additional_output_names=[OUTPUT],
            optimizer=update,
            artifact_directory=str(folder),
        )
    written = onnx.load(folder / UPDATE)
    written.ir_version = IR_VERSION  # newer versions of onnx write one that the runtime does not know
    for attribute in written.graph.node[0].attribute:
        if attribute.name == "adam_mode":
            attribute.i = 0  # decay before the update and ε as in torch.optim.AdamW, not as in early transformers
    onnx.save(written, folder / UPDATE)


@contextmanager
def _silent() -> Iterator[None]:
    """Keep quiet what writes to the standard error stream past Python: graph passes log there at any severity set."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _compare(
    runtime: Runtime, folder: Path, inference: onnx.ModelProto, sample: Images, label_smoothing: float
) -> Comparison:
    """Evaluate the artifacts, and the graph for inference, on the same images; then let both training graphs agree.

    Raises:
        AssertionError: they differ.
    """
    options = runtime.inference.SessionOptions()
    options.log_severity_level = 3
    session = runtime.inference.InferenceSession(
        inference.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    state = runtime.api.CheckpointState.load_checkpoint(str(folder / CHECKPOINT))
    module = runtime.api.Module(str(folder / TRAINING), state, str(folder / EVALUATION), session_options=options)

    def expected(values: Any) -> Any:
        return session.run([OUTPUT], {INPUT: values})[0]

    def labels(values: Any, logits: Any) -> Any:
        return np.arange(len(values)) % logits.shape[1]

    def evaluated(values: Any) -> Any:
        module.eval()
        logits = expected(values)
        return module(values, labels(values, logits))[1]

    found = compare(sample, expected, evaluated)
    logits = expected(sample.values).astype(np.float64)
    logs = logits - logits.max(1, keepdims=True)
    logs -= np.log(np.exp(logs).sum(1, keepdims=True))
    answers = labels(sample.values, logits)
    hard = -logs[np.arange(len(logs)), answers].mean()
    loss = (1 - label_smoothing) * hard - label_smoothing * logs.mean()
    module.train()
    trained = float(module(sample.values, answers)[0])
    allowed = _LARGEST_DIFFERENCE * max(1.0, found.largest_logit)
    if not max(found.max_abs_difference, abs(trained - loss)) <= allowed:
        raise AssertionError(
            f"the artifacts differ from the inference graph by {found.max_abs_difference:.3g} in logits and"
            f" {abs(trained - loss):.3g} in the loss"
        )
    return found


def _manifest(checkpoint: Checkpoint, choice: _Choice, frozen: list[str], folder: Path) -> schema.OrtTraining:
    spec, side = checkpoint.spec, checkpoint.spec.image_size
    versions = {}
    for name in (*_PACKAGES, "onnx", "numpy"):
        try:
            versions[name] = packages.version(name)
        except packages.PackageNotFoundError:
            continue
    return schema.OrtTraining(
        model=spec.name,
        image_size=side,
        classes=checkpoint.classes,
        mean=spec.mean,
        std=spec.std,
        preprocessing=IN_WORDS,
        inputs={INPUT: f"float32 (batch, 3, {side}, {side})", LABELS: "int64 (batch), places in classes"},
        outputs={LOSS: "float32, mean over the batch", OUTPUT: f"float32 (batch, {spec.classes})"},
        trained=choice.trained,
        frozen=frozen,
        label_smoothing=choice.label_smoothing,
        optimizer=choice.optimizer,
        files={path.name: sha256(path) for path in sorted(folder.iterdir())},
        made_with=versions,
        edgetune_version=__version__,
        created=schema.now(),
    )
