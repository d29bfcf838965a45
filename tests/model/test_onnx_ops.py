"""A whole block, forward and backward, as one ONNX graph in an ordinary runtime, against the same functions in torch."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetune.model.block import (
    ATTENTION,
    ATTENTION_SCALE,
    MLP,
    MLP_SCALE,
    Shape,
    attention_backward,
    attention_forward,
    mlp_backward,
    mlp_forward,
)
from edgetune.model.ops import Ops
from edgetune.model.torch_ops import TorchOps

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from edgetune.model.onnx_graph import IR_VERSION, OPSET, Graph  # noqa: E402
from edgetune.model.onnx_ops import MERGES, OnnxOps, Value  # noqa: E402

OPS: Ops[Value] = OnnxOps(Graph())  # so that mypy holds the two lists of operations together
SCALES = (ATTENTION_SCALE, MLP_SCALE)
NAMES = (*ATTENTION, *MLP, *SCALES)
BIASES = {name for name in NAMES if name.endswith("bias")}


class Kept(dict):
    """The simplest way of saving: exactly."""

    def put(self, name, values):
        self[name] = values.clone() if name == "x" and isinstance(values, torch.Tensor) else values

    def take(self, name):
        return self.pop(name)


def random_weights(width, hidden, *, layer_scale, seed=0):
    rng = np.random.default_rng(seed)
    sides = {"attn.qkv": (3 * width, width), "attn.proj": (width, width), "mlp.fc1": (hidden, width)}
    sides |= {"mlp.fc2": (width, hidden)}
    found = {}
    for layer, side in sides.items():
        found[f"{layer}.weight"] = rng.standard_normal(side) / side[1] ** 0.5
        found[f"{layer}.bias"] = 0.2 * rng.standard_normal(side[0])
    for norm in ("norm1", "norm2"):
        found[f"{norm}.weight"] = 1 + 0.2 * rng.standard_normal(width)
        found[f"{norm}.bias"] = 0.2 * rng.standard_normal(width)
    if layer_scale:
        found |= {name: 0.5 + 0.2 * rng.standard_normal(width) for name in SCALES}
    return {name: value.astype(np.float32) for name, value in found.items()}


def block(ops, x, dy, weights, shape, *, needs, readers=None, totals=None, input_needed=True, observe=None):
    """Output, gradient of the input, gradients of the weights, attention received."""
    first, second = Kept(), Kept()
    middle = attention_forward(ops, x, weights, shape, first, readers=readers, observe=observe)
    y = mlp_forward(ops, middle.y, weights, shape, second).y
    back = mlp_backward(ops, dy, second, weights, shape, needs=needs & {*MLP, MLP_SCALE}, totals=totals)
    assert back.dx is not None
    rest = attention_backward(
        ops,
        back.dx,
        first,
        weights,
        shape,
        needs=needs & {*ATTENTION, ATTENTION_SCALE},
        totals=back.gradients,
        input_needed=input_needed,
        readers=readers,
    )
    return y, rest.dx, rest.gradients, middle.received


def build(weights, shape, *, needs, readers=None, totals=False, observe=None, tokens=None):
    """The graph of a block: x, dy and the weights go in; y, dx and the gradients come out."""
    graph = Graph()
    ops = OnnxOps(graph, "block.")
    width = len(weights["norm1.weight"])
    sides = {"x": ["batch", tokens or "tokens", width], "dy": ["batch", readers or tokens or "tokens", width]}
    x = ops.tokens("x", width, tokens)
    dy = ops.tokens("dy", width, readers or x.tokens)
    values = {name: Value(name, array.shape) for name, array in weights.items()}
    sides |= {name: list(array.shape) for name, array in weights.items()}
    sums = {name: Value(f"total.{name}", weights[name].shape) for name in needs} if totals else None
    sides |= {f"total.{name}": list(weights[name].shape) for name in (sums or {})}
    y, dx, gradients, received = block(
        ops, x, dy, values, shape, needs=needs, readers=readers, totals=sums, observe=observe
    )
    results = {ops.output(y, "y"): sides["dy"], ops.output(dx, "dx"): sides["x"]}
    if received is not None:
        results[ops.output(received._replace(tokens=None), "received")] = sides["x"][:2]
    for name, value in gradients.items():
        assert value.shape == weights[name].shape
        results[ops.output(value, f"grad.{name}")] = list(weights[name].shape)
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            graph.nodes,
            "block",
            [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, side) for name, side in sides.items()],
            [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, side) for name, side in results.items()],
            list(graph.constants.values()),
        ),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def start(model, *, merge=False):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    disabled = [] if merge else MERGES
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled
    )


def run(session, inputs):
    names = [output.name for output in session.get_outputs()]
    wanted = {side.name for side in session.get_inputs()}
    found = session.run(names, {name: array for name, array in inputs.items() if name in wanted})
    return dict(zip(names, found, strict=True))


def run_torch(x, dy, weights, shape, *, totals=None, **settings):
    tensors = {name: torch.from_numpy(array.copy()) for name, array in weights.items()}
    sums = {name: torch.from_numpy(array.copy()) for name, array in totals.items()} if totals else None
    y, dx, gradients, received = block(
        TorchOps(), torch.from_numpy(x.copy()), torch.from_numpy(dy.copy()), tensors, shape, totals=sums, **settings
    )
    found = {"y": y, "dx": dx} | {f"grad.{name}": value for name, value in gradients.items()}
    if received is not None:
        found["received"] = received
    return {name: value.numpy() for name, value in found.items()}


def random_tokens(batch, tokens, readers, width, seed=1):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((batch, tokens, width)) + 0.5
    dy = rng.standard_normal((batch, readers or tokens, width))
    return x.astype(np.float32), dy.astype(np.float32)


def assert_equal(found, expected, share=1e-5):
    """To `share` of each tensor's norm, or of the whole gradient's where it is nothing but noise (a bias of keys is)."""
    assert found.keys() == expected.keys()
    whole = np.sqrt(sum(np.linalg.norm(expected[name]) ** 2 for name in expected if name.startswith("grad.")))
    for name, array in expected.items():
        assert found[name].shape == array.shape, name
        own = np.linalg.norm(array)
        against = max(own, 1e-6 * whole) if name.startswith("grad.") else own
        assert np.linalg.norm(found[name] - array) <= share * against + 1e-6, name  # sums may cancel


NEEDS = {
    "frozen": set(),
    "all": set(NAMES),
    "biases": BIASES,
    "norms": {name for name in NAMES if name.startswith("norm")},
    "attention": {*ATTENTION, ATTENTION_SCALE},
    "mlp": {*MLP, MLP_SCALE},
}


@pytest.mark.parametrize("needs", NEEDS.values(), ids=NEEDS)
@pytest.mark.parametrize("readers", [None, 1])
@pytest.mark.parametrize("layer_scale", [False, True], ids=["plain", "layer_scale"])
def test_a_block_in_onnxruntime_is_the_block_in_torch(layer_scale, readers, needs):
    weights, shape = random_weights(24, 96, layer_scale=layer_scale), Shape(heads=3, eps=1e-6)
    needs = needs & weights.keys()
    session = start(build(weights, shape, needs=needs, readers=readers))
    for batch, tokens in ((1, 1), (2, 7), (3, 17)):
        x, dy = random_tokens(batch, tokens, readers, 24)
        expected = run_torch(x, dy, weights, shape, needs=needs, readers=readers)
        assert {name for name in expected if name.startswith("grad.")} == {f"grad.{name}" for name in needs}
        assert_equal(run(session, {"x": x, "dy": dy} | weights), expected)


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_any_shape_and_any_parameters(data):
    heads, per_head, hidden = (data.draw(st.integers(1, high)) for high in (3, 8, 40))
    batch, tokens = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 9))
    readers = data.draw(st.none() | st.integers(1, tokens))
    weights = random_weights(heads * per_head, hidden, layer_scale=data.draw(st.booleans()))
    needs = data.draw(st.sets(st.sampled_from(sorted(weights))))
    x, dy = random_tokens(batch, tokens, readers, heads * per_head)
    settings_ = {"needs": needs, "readers": readers}
    expected = run_torch(x, dy, weights, Shape(heads, 1e-3), **settings_)
    found = run(start(build(weights, Shape(heads, 1e-3), **settings_)), {"x": x, "dy": dy} | weights)
    assert_equal(found, expected, share=3e-5)  # a norm over two numbers magnifies rounding: 1.7e-5 was found


@pytest.mark.parametrize("readers", [None, 2])
def test_gradients_are_added_to_sums_under_way(readers):
    weights, shape = random_weights(24, 48, layer_scale=True), Shape(3, 1e-6)
    x, dy = random_tokens(2, 9, readers, 24)
    totals = {name: 3 * array for name, array in random_weights(24, 48, layer_scale=True, seed=2).items()}
    needs = set(weights)
    expected = run_torch(x, dy, weights, shape, needs=needs, readers=readers, totals=totals)
    alone = run_torch(x, dy, weights, shape, needs=needs, readers=readers)
    for name in weights:
        assert not np.allclose(expected[f"grad.{name}"], alone[f"grad.{name}"])
    session = start(build(weights, shape, needs=needs, readers=readers, totals=True))
    inputs = {"x": x, "dy": dy} | weights | {f"total.{name}": array for name, array in totals.items()}
    assert_equal(run(session, inputs), expected)


@pytest.mark.parametrize(("readers", "observe"), [(None, 1), (None, 5), (2, 2)])
def test_attention_received(readers, observe):
    weights, shape = random_weights(24, 48, layer_scale=False), Shape(3, 1e-6)
    x, dy = random_tokens(2, 9, readers, 24)
    expected = run_torch(x, dy, weights, shape, needs=set(), readers=readers, observe=observe)
    np.testing.assert_allclose(expected["received"].sum(1), 1, rtol=1e-5)
    session = start(build(weights, shape, needs=set(), readers=readers, observe=observe))
    assert_equal(run(session, {"x": x, "dy": dy} | weights), expected)


@pytest.mark.parametrize("readers", [None, 2])
def test_a_fixed_number_of_tokens_leaves_no_arithmetic_on_shapes(readers):
    weights, shape = random_weights(24, 48, layer_scale=False), Shape(3, 1e-6)
    x, dy = random_tokens(3, 9, readers, 24)
    needs = set(weights)
    model = build(weights, shape, needs=needs, readers=readers, tokens=9)
    assert not {node.op_type for node in model.graph.node} & {"Shape", "Gather", "Unsqueeze"}
    expected = run_torch(x, dy, weights, shape, needs=needs, readers=readers)
    assert_equal(run(start(model), {"x": x, "dy": dy} | weights), expected)


def test_few_operators_and_none_but_the_standard_ones():
    weights, shape = random_weights(24, 48, layer_scale=False), Shape(3, 1e-6)
    frozen, whole = (build(weights, shape, needs=needs) for needs in (set(), set(weights)))
    assert {opset.domain: opset.version for opset in whole.opset_import} == {"": OPSET}
    kinds = Counter(node.op_type for node in whole.graph.node if node.op_type not in {"Reshape", "Identity"})
    assert kinds["Gemm"] == 12  # four layers: forward, towards the input, towards the weight
    assert kinds["MatMul"] == 7  # attention: two forward, one of them again, four backward
    assert kinds["LayerNormalization"] == 4  # two, each computed again for the weight behind it
    assert kinds["Softmax"] == 2
    assert sum(kinds.values()) <= 120
    assert len(frozen.graph.node) < len(whole.graph.node) - 20
    # What only a weight's gradient needs is not there without it
    kinds = Counter(node.op_type for node in frozen.graph.node)
    assert kinds["Gemm"] == 8
    assert kinds["LayerNormalization"] == 2


def test_with_nothing_merged_cheap_things_are_computed_again_and_the_gelu_is_one_operator(tmp_path):
    weights = random_weights(24, 48, layer_scale=False)
    model = build(weights, Shape(3, 1e-6), needs=set(weights))
    kinds = {}
    for merge in (False, True):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
        onnxruntime.InferenceSession(
            model.SerializeToString(),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=[] if merge else MERGES,
        )
        nodes = onnx.load(tmp_path / "optimised.onnx").graph.node
        kinds[merge] = Counter(node.op_type for node in nodes)
    assert (kinds[False]["Gelu"], kinds[False]["LayerNormalization"], kinds[False]["Softmax"]) == (2, 4, 2)
    assert (kinds[True]["Gelu"], kinds[True]["LayerNormalization"], kinds[True]["Softmax"]) == (1, 2, 1)


def test_a_graph_is_written_without_torch():
    code = "import sys, edgetune.model.onnx_ops, edgetune.model.block; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
