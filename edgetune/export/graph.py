"""A plain ViT as an ONNX graph, node by node.

Written out rather than traced: the graph then depends on no exporter's version, is the same small one everywhere, takes
any batch size, and needs neither tracing memory nor onnxscript on the device. Operators are those of opset 17, the
first with LayerNormalization, which every runtime of the last years takes. Names follow the parameters.

ONNX operators: https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from edgetune.model.onnx_graph import IR_VERSION, OPSET, Graph
from edgetune.model.spec import ViTSpec

INPUT, OUTPUT = "images", "logits"
Floats = NDArray[np.float32]


def build_graph(
    spec: ViTSpec, weights: Mapping[str, Floats], metadata: Mapping[str, str], *, training: bool = False
) -> onnx.ModelProto:
    """The model `images (batch, 3, S, S) → logits (batch, classes)`, float32, softmax not included.

    Args:
        spec: the architecture.
        weights: its parameters under timm's names.
        metadata: goes to the model's metadata.
        training: keep every parameter as timm has it, nothing transposed or merged beforehand, so that its gradient
            is the parameter's own; and let norms give mean and 1 / deviation too, which their gradient reads.
    """
    graph = _ModelGraph(training)
    x = _embed(graph, spec, weights)
    for index in range(spec.depth):
        x = _block(graph, spec, weights, f"blocks.{index}.", x)
    _classify(graph, spec, weights, x)
    side = spec.image_size
    proto = helper.make_graph(
        graph.nodes,
        spec.name,
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", 3, side, side])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", spec.classes])],
        list(graph.constants.values()),
    )
    opset = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(proto, producer_name="edgetune", opset_imports=opset, ir_version=IR_VERSION)
    helper.set_model_props(model, dict(metadata))
    return model


class _ModelGraph(Graph):
    """A graph that knows whether gradients towards its constants will be asked for; see `build_graph`."""

    def __init__(self, training: bool) -> None:
        super().__init__()
        self.training = training


def _embed(graph: _ModelGraph, spec: ViTSpec, weights: Mapping[str, Floats]) -> str:
    """Images to tokens (batch, N, C)."""
    kernel = [graph.constant(name, weights[name]) for name in ("patch_embed.proj.weight", "patch_embed.proj.bias")]
    sides = [spec.patch_size, spec.patch_size]
    x = graph.add("Conv", [INPUT, *kernel], "patch_embed.proj", kernel_shape=sides, strides=sides)
    x = graph.add("Reshape", [x, graph.shape(0, spec.width, spec.patches)], "patch_embed.flat")
    x = graph.add("Transpose", [x], "patch_embed.tokens", perm=[0, 2, 1])
    tokens = [name for name in ("cls_token", "dist_token", "reg_token") if name in weights]
    positions = weights["pos_embed"]
    if graph.training:
        positions_name = graph.constant("pos_embed", positions)
        if not spec.prefix_positions:
            x = graph.add("Add", [x, positions_name], "patch_embed.placed")
        if not tokens:
            return str(x)
        x = _with_prefix(graph, spec, [graph.constant(name, weights[name]) for name in tokens], x)
        return str(graph.add("Add", [x, positions_name], "tokens.placed")) if spec.prefix_positions else x
    prefix_positions, patch_positions = np.split(positions, [spec.prefix_positions], axis=1)
    x = graph.add("Add", [x, graph.constant("pos_embed", patch_positions)], "patch_embed.placed")
    if not tokens:
        return str(x)
    prefix = np.concatenate([weights[name] for name in tokens], axis=1)
    if spec.prefix_positions:
        prefix = prefix + prefix_positions
    return _with_prefix(graph, spec, [graph.constant("prefix_tokens", prefix)], x)


def _with_prefix(graph: _ModelGraph, spec: ViTSpec, tokens: list[str], x: str) -> str:
    """Patch tokens (batch, P, C) behind the prefix tokens, each (1, n, C)."""
    prefix = graph.add("Concat", tokens, "prefix_tokens.joined", axis=1) if len(tokens) > 1 else tokens[0]
    batch = graph.add("Shape", [INPUT], "batch", start=0, end=1)
    shape = graph.add("Concat", [batch, graph.shape(spec.prefix, spec.width)], "prefix.shape", axis=0)
    return str(graph.add("Concat", [graph.add("Expand", [prefix, shape], "prefix"), x], "tokens", axis=1))


def _block(graph: _ModelGraph, spec: ViTSpec, weights: Mapping[str, Floats], at: str, x: str) -> str:
    """One transformer block."""
    head_width = spec.width // spec.heads
    scale = graph.constant("attention_scale", np.array(1 / math.sqrt(head_width), np.float32))

    y = _norm(graph, spec, weights, at + "norm1", x)
    parts = graph.add("Split", [_linear(graph, weights, at + "attn.qkv", y)], at + "attn.split", outputs=3, axis=2)
    apart = graph.shape(0, 0, spec.heads, head_width)
    q, k, v = (
        graph.add(
            "Transpose", [graph.add("Reshape", [part, apart], f"{at}attn.{name}")], f"{at}attn.{name}_t", perm=perm
        )
        for part, name, perm in zip(parts, "qkv", ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]), strict=True)
    )
    scores = graph.add("MatMul", [graph.add("Mul", [q, scale], at + "attn.q_scaled"), k], at + "attn.scores")
    mixed = graph.add("MatMul", [graph.add("Softmax", [scores], at + "attn.softmax", axis=-1), v], at + "attn.mixed")
    mixed = graph.add("Transpose", [mixed], at + "attn.mixed_t", perm=[0, 2, 1, 3])
    mixed = graph.add("Reshape", [mixed, graph.shape(0, 0, spec.width)], at + "attn.joined")
    y = _linear(graph, weights, at + "attn.proj", mixed)
    x = _residual(graph, spec, weights, at + "ls1", x, y)

    y = _linear(graph, weights, at + "mlp.fc1", _norm(graph, spec, weights, at + "norm2", x))
    half = graph.constant("half", np.array(0.5, np.float32))
    one = graph.constant("one", np.array(1, np.float32))
    root = graph.constant("root_two", np.array(math.sqrt(2), np.float32))
    erf = graph.add("Erf", [graph.add("Div", [y, root], at + "mlp.gelu.div")], at + "mlp.gelu.erf")
    gate = graph.add("Mul", [y, graph.add("Add", [erf, one], at + "mlp.gelu.add")], at + "mlp.gelu.gate")
    y = _linear(graph, weights, at + "mlp.fc2", graph.add("Mul", [gate, half], at + "mlp.gelu"))
    return _residual(graph, spec, weights, at + "ls2", x, y)


def _classify(graph: _ModelGraph, spec: ViTSpec, weights: Mapping[str, Floats], x: str) -> None:
    """Tokens to logits."""
    if spec.pool == "avg":
        ends = [graph.shape(spec.prefix), graph.shape(spec.tokens), graph.shape(1)]
        patches = graph.add("Slice", [x, *ends], "patches")
        pooled = [graph.add("ReduceMean", [patches], "pooled", axes=[1], keepdims=0)]
    else:
        count = len(spec.classifiers)
        pooled = [
            graph.add(
                "Gather", [x, graph.constant(f"index_{index}", np.array(index, np.int64))], f"token_{index}", axis=1
            )
            for index in range(count)
        ]
    answers = []
    for head, token in zip(spec.classifiers, pooled, strict=True):
        token = _norm(graph, spec, weights, spec.final_norm, token, f"{token}.norm")
        matrix = [graph.constant(f"{head}.{kind}", weights[f"{head}.{kind}"]) for kind in ("weight", "bias")]
        output = OUTPUT if len(spec.classifiers) == 1 else f"{head}.logits"
        answers.append(graph.add("Gemm", [token, *matrix], output, transB=1))
    if len(answers) == 2:
        half = graph.constant("half", np.array(0.5, np.float32))
        graph.add("Mul", [graph.add("Add", answers, "logits.sum"), half], OUTPUT)


def _norm(
    graph: _ModelGraph, spec: ViTSpec, weights: Mapping[str, Floats], at: str, x: str, name: str | None = None
) -> str:
    inputs = [x, *(graph.constant(f"{at}.{kind}", weights[f"{at}.{kind}"]) for kind in ("weight", "bias"))]
    outputs = 3 if graph.training else 1
    found = graph.add("LayerNormalization", inputs, name or at, outputs, axis=-1, epsilon=spec.norm_eps)
    return str(found[0] if graph.training else found)


def _linear(graph: _ModelGraph, weights: Mapping[str, Floats], at: str, x: str) -> str:
    """`x Wᵀ + b`, as the MatMul and Add that quantisation looks for."""
    if graph.training:
        matrix = graph.constant(f"{at}.weight", weights[f"{at}.weight"])
        matrix = graph.add("Transpose", [matrix], f"{at}.weight_t", perm=[1, 0])  # onnxruntime-training reads perm
    else:
        matrix = graph.constant(f"{at}.weight", weights[f"{at}.weight"].T)
    y = graph.add("MatMul", [x, matrix], f"{at}.product")
    return str(graph.add("Add", [y, graph.constant(f"{at}.bias", weights[f"{at}.bias"])], at))


def _residual(graph: _ModelGraph, spec: ViTSpec, weights: Mapping[str, Floats], at: str, x: str, y: str) -> str:
    if spec.layer_scale:
        y = graph.add("Mul", [y, graph.constant(f"{at}.gamma", weights[f"{at}.gamma"])], at)
    return str(graph.add("Add", [x, y], f"{at}.sum"))
