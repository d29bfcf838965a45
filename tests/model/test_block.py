"""The block's hand-derived backward pass against autograd, parameter by parameter, and against differences."""

from __future__ import annotations

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetune.model.autograd import block as autograd_block
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
from edgetune.model.registry import find_spec
from edgetune.model.spec import ViTSpec
from edgetune.model.torch_ops import TorchOps
from edgetune.model.vit import Block

OPS = TorchOps()
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
KINDS = {
    "all": lambda name: True,
    "none": lambda name: False,
    "biases": lambda name: name.endswith("bias"),
    "norms": lambda name: name.startswith("norm"),
    "scales": lambda name: name.endswith("gamma"),
    "attention": lambda name: name in {*ATTENTION, ATTENTION_SCALE},
    "mlp": lambda name: name in {*MLP, MLP_SCALE},
    "matrices": lambda name: name in {"attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight"},
}
MODELS = ("vit_tiny_patch16_224", "vit_small_patch14_dinov2", "vit_wee_patch16_reg1_gap_256")


class Kept(dict):
    """Saved exactly; what stays in it at the end was kept for nothing."""

    def put(self, name, values):
        assert name not in self
        self[name] = values.clone() if name == "x" else values

    def take(self, name):
        return self.pop(name)


def run(x, dy, weights, shape, *, needs, readers=None, totals=None, input_needed=True):
    """Both halves, forward and backward: output, gradient of the input, gradients of the weights."""
    first, second = Kept(), Kept()
    with torch.no_grad():
        y = attention_forward(OPS, x.clone(), weights, shape, first, readers=readers).y
        y = mlp_forward(OPS, y, weights, shape, second).y
        back = mlp_backward(OPS, dy.clone(), second, weights, shape, needs=needs & {*MLP, MLP_SCALE}, totals=totals)
        dx, gradients = attention_backward(
            OPS,
            back.dx,
            first,
            weights,
            shape,
            needs=needs & {*ATTENTION, ATTENTION_SCALE},
            totals=back.gradients,
            input_needed=input_needed,
            readers=readers,
        )
    return y, dx, gradients


def run_autograd(module, x, dy, readers=None):
    """The same of `edgetune.model.vit.Block`, all weights."""
    x = x.clone().requires_grad_()
    y = module(x)[0][:, :readers]
    names, parameters = zip(*module.named_parameters(), strict=True)
    dx, *gradients = torch.autograd.grad(y, (x, *parameters), dy)
    return y.detach(), dx, dict(zip(names, gradients, strict=True))


def assert_close(found, expected, tolerance):
    """Relative norm per tensor; where a gradient is under 1e-6 of all, absolute."""
    (y, dx, gradients), (y_expected, dx_expected, all_expected) = found, expected
    torch.testing.assert_close(y, y_expected, rtol=tolerance, atol=tolerance)
    whole = sum(gradient.norm() ** 2 for gradient in all_expected.values()) ** 0.5
    pairs = {name: (gradient, all_expected[name]) for name, gradient in gradients.items()}
    if dx is not None:
        pairs["x"] = dx, dx_expected
    for name, (mine, reference) in pairs.items():
        assert mine.shape == reference.shape, name
        assert mine.dtype == reference.dtype, name
        norm, difference = reference.norm(), (mine - reference).norm()
        assert difference <= tolerance * (norm if norm >= 1e-6 * whole else 1), name


def make(spec, dtype=torch.float64, seed=0):
    """A block with random values everywhere, large enough that no tensor is without effect; shape and weights of it."""
    module = Block(spec).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=dtype)
            if parameter.ndim > 1:
                parameter.copy_(noise / parameter.shape[1] ** 0.5)
            else:
                parameter.copy_(noise * 0.2 + (0 if name.endswith("bias") else 1))
    weights = {name: parameter.detach() for name, parameter in module.named_parameters()}
    return module, Shape(spec.heads, spec.norm_eps), weights


def draw(batch, tokens, width, dtype=torch.float64, seed=1):
    return torch.randn(batch, tokens, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(
        dtype
    )


def tiny(heads=2, per_head=3, hidden=10, layer_scale=True):
    return ViTSpec(
        name="tiny",
        width=heads * per_head,
        depth=1,
        heads=heads,
        patch_size=8,
        mlp_width=hidden,
        layer_scale=layer_scale,
    )


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("readers", [None, 1, 2])
@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_those_of_autograd(name, readers, dtype):
    spec = find_spec(name)
    module, shape, weights = make(spec, dtype)
    for batch, tokens in ((1, 3), (2, 21), (3, 8)):
        x, dy = draw(batch, tokens, spec.width, dtype), draw(batch, readers or tokens, spec.width, dtype, seed=2)
        before = {key: value.clone() for key, value in weights.items()}
        found = run(x, dy, weights, shape, needs=set(weights), readers=readers)
        assert found[2].keys() == weights.keys()
        assert_close(found, run_autograd(module, x, dy, readers), TOLERANCE[dtype])
        assert all(torch.equal(weights[key], value) for key, value in before.items())


def test_the_models_cover_layer_scale_registers_and_another_hidden_width():
    specs = [find_spec(name) for name in MODELS]
    assert {spec.layer_scale for spec in specs} == {True, False}
    assert any(spec.register_tokens for spec in specs)
    assert any(spec.hidden != 4 * spec.width for spec in specs)


@pytest.mark.parametrize("input_needed", [True, False])
@pytest.mark.parametrize("readers", [None, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_only_what_is_needed_is_given(kind, readers, input_needed):
    spec = tiny()
    module, shape, weights = make(spec)
    needs = {name for name in weights if KINDS[kind](name)}
    assert bool(needs) == (kind != "none")
    x, dy = draw(2, 5, spec.width), draw(2, readers or 5, spec.width, seed=2)
    found = run(x, dy, weights, shape, needs=needs, readers=readers, input_needed=input_needed)
    assert found[2].keys() == needs
    assert (found[1] is not None) == input_needed
    assert_close(found, run_autograd(module, x, dy, readers), 1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("half", ["attention", "mlp"])
def test_a_half_alone_may_be_the_lowest(half, kind):
    """Neither the input's gradient nor, for some choices, anything but the branch's end is computed."""
    spec = tiny()
    module, shape, weights = make(spec)
    names = {*ATTENTION, ATTENTION_SCALE} if half == "attention" else {*MLP, MLP_SCALE}
    forward, backward = (attention_forward, attention_backward) if half == "attention" else (mlp_forward, mlp_backward)
    needs = {name for name in names if KINDS[kind](name)}
    x, dy, saved = draw(2, 5, spec.width), draw(2, 5, spec.width, seed=2), Kept()
    with torch.no_grad():
        forward(OPS, x.clone(), weights, shape, saved)
        dx, gradients = backward(OPS, dy.clone(), saved, weights, shape, needs=needs, input_needed=False)
    assert dx is None
    branch = module.norm1 if half == "attention" else module.norm2
    y = module.ls1(module.attn(branch(x))[0]) if half == "attention" else module.ls2(module.mlp(branch(x)))
    parameters = dict(module.named_parameters())
    assert gradients.keys() == needs
    for name in needs:
        (expected,) = torch.autograd.grad(y, parameters[name], dy, retain_graph=True)
        torch.testing.assert_close(gradients[name], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("readers", [None, 1, 2])
@pytest.mark.parametrize("layer_scale", [False, True])
def test_two_chunks_add_up_to_one_pass(layer_scale, readers):
    spec = tiny(layer_scale=layer_scale)
    _, shape, weights = make(spec)
    x, dy = draw(5, 4, spec.width), draw(5, readers or 4, spec.width, seed=2)
    needs = set(weights)
    whole = run(x, dy, weights, shape, needs=needs, readers=readers)
    upper = run(x[:2], dy[:2], weights, shape, needs=needs, readers=readers)
    both = run(x[2:], dy[2:], weights, shape, needs=needs, readers=readers, totals=dict(upper[2]))
    assert_close((torch.cat([upper[0], both[0]]), torch.cat([upper[1], both[1]]), both[2]), whole, 1e-12)


def test_totals_of_other_parameters_pass_through():
    spec = tiny()
    _, shape, weights = make(spec)
    other = torch.ones(3)
    gradients = run(*(draw(2, 4, spec.width),) * 2, weights, shape, needs={"mlp.fc1.bias"}, totals={"head": other})[2]
    assert gradients.keys() == {"head", "mlp.fc1.bias"}
    assert gradients["head"] is other
    assert torch.equal(other, torch.ones(3))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_shape_and_any_parameters(data):
    heads, per_head, hidden = (data.draw(st.integers(1, high)) for high in (3, 8, 20))
    spec = tiny(heads, per_head, hidden, data.draw(st.booleans()))
    module, shape, weights = make(spec, seed=data.draw(st.integers(0, 5)))
    batch, tokens = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 9))
    readers = data.draw(st.none() | st.integers(1, tokens))
    needs = data.draw(st.sets(st.sampled_from(sorted(weights))))
    x, dy = draw(batch, tokens, spec.width), draw(batch, readers or tokens, spec.width, seed=2)
    found = run(x, dy, weights, shape, needs=needs, readers=readers, input_needed=data.draw(st.booleans()))
    assert found[2].keys() == needs
    assert_close(found, run_autograd(module, x, dy, readers), 1e-9)


@pytest.mark.parametrize("readers", [None, 1])
def test_gradients_are_those_of_differences(readers):
    """Central differences along random directions: no autograd on either side."""
    spec = tiny()
    _, shape, weights = make(spec)
    x, dy = draw(2, 3, spec.width), draw(2, readers or 3, spec.width, seed=2)
    _, dx, gradients = run(x, dy, weights, shape, needs=set(weights), readers=readers)

    def value(x, weights):
        return (run(x, dy, weights, shape, needs=set(), readers=readers)[0] * dy).sum()

    step = 1e-5
    for name, gradient in {"x": dx, **gradients}.items():
        direction = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        sides = []
        for sign in (1, -1):
            if name == "x":
                sides.append(value(x + sign * step * direction, weights))
            else:
                sides.append(value(x, weights | {name: weights[name] + sign * step * direction}))
        slope = (sides[0] - sides[1]) / (2 * step)
        torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-7, atol=1e-8, msg=name)


@pytest.mark.parametrize("readers", [None, 2])
def test_saved_is_what_the_module_says_and_all_of_it_is_used(readers):
    spec = tiny(heads=2, per_head=3, hidden=10, layer_scale=False)
    _, shape, weights = make(spec)
    first, second = Kept(), Kept()
    x = draw(2, 5, 6)
    with torch.no_grad():
        y = attention_forward(OPS, x.clone(), weights, shape, first, readers=readers).y
        mlp_forward(OPS, y, weights, shape, second)
        per_token = {name: value[0, 0].numel() for name, value in first.items() if name != "lse"}
        names = {"qkv": 18} if readers is None else {"q": 6, "kv": 12}
        assert per_token == {"x": 6, "out": 6, "mean": 1, "rstd": 1, **names}
        assert first["lse"].shape == (2, 2, readers or 5)
        assert {name: value[0, 0].numel() for name, value in second.items()} == {
            "x": 6,
            "pre": 10,
            "mean": 1,
            "rstd": 1,
        }
        assert torch.equal(first["x"], x)  # though the forward pass wrote over its own
        dy = draw(2, readers or 5, 6, seed=2)
        back = mlp_backward(OPS, dy, second, weights, shape, needs=set())
        attention_backward(OPS, back.dx, first, weights, shape, needs=set(), readers=readers)
    assert not first
    assert not second


@pytest.mark.parametrize("readers", [None, 2])
@pytest.mark.parametrize("observe", [1, 2])
def test_attention_received_is_that_of_the_block(observe, readers):
    spec = tiny()
    module, shape, weights = make(spec)
    x = draw(2, 5, spec.width)
    with torch.no_grad():
        found = attention_forward(OPS, x.clone(), weights, shape, Kept(), readers=readers, observe=observe).received
        expected = module(x, with_received=True, query_tokens=observe)[1]
    torch.testing.assert_close(found, expected.to(found.dtype), rtol=1e-6, atol=0)


@pytest.mark.parametrize("layer_scale", [False, True])
@pytest.mark.parametrize("readers", [None, 1])
def test_autograd_wraps_the_block(readers, layer_scale):
    _, shape, weights = make(tiny(layer_scale=layer_scale))
    names = tuple(weights)

    def function(x, *values):
        return autograd_block(x, dict(zip(names, values, strict=True)), shape, readers=readers)

    inputs = [value.clone().requires_grad_() for value in (draw(2, 3, 6), *weights.values())]
    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("x_needed", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_autograd_wraps_a_block_of_which_a_part_is_trained(kind, x_needed):
    module, shape, weights = make(tiny())
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(KINDS[kind](name))
    x = draw(2, 5, 6).requires_grad_(x_needed)
    y = autograd_block(x, dict(module.named_parameters()), shape, readers=2)
    assert y.is_contiguous()
    if kind == "none" and not x_needed:
        assert not y.requires_grad
        return
    dy = draw(2, 2, 6, seed=2)
    y.backward(dy, retain_graph=True)
    y.backward(dy)  # what is saved survives a backward pass: the sum is twice the gradient
    expected = run_autograd(make(tiny())[0], x.detach(), dy, 2)
    found = {name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None}
    assert found.keys() == {name for name in weights if KINDS[kind](name)}
    halves = {name: gradient / 2 for name, gradient in found.items()}
    assert_close((y.detach(), x.grad / 2 if x_needed else None, halves), expected, 1e-9)


def test_autograd_saves_what_the_module_says():
    spec = msgspec.structs.replace(find_spec("vit_small_patch14_dinov2"), width=96, heads=3)
    module, shape, _ = make(spec, torch.float32)
    parameters = dict(module.named_parameters())
    of_parameters = {parameter.data_ptr() for parameter in parameters.values()}
    tokens = 2 * 50

    def saved_widths(function):
        """What autograd keeps besides the parameters, in widths a token."""
        found = {}

        def pack(tensor):
            if tensor.data_ptr() not in of_parameters:
                found[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            y = function()
        return sum(found.values()) / (4 * spec.width * tokens), y

    x = draw(2, 50, spec.width, torch.float32).requires_grad_()
    eager, expected = saved_widths(lambda: module(x)[0])
    lean, y = saved_widths(lambda: autograd_block(x, parameters, shape))
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    assert eager > 17
    assert 5 + 1 + 4 <= lean <= 5 + 1 + 4 + 0.1  # a few numbers a token
    # With the gradient ending in the MLP, attention leaves nothing behind
    for name, parameter in parameters.items():
        parameter.requires_grad_(name.startswith("mlp"))
    lean, _ = saved_widths(lambda: autograd_block(x.detach(), parameters, shape))
    assert 1 + 4 <= lean <= 1 + 4 + 0.1
