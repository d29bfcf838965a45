"""A transformer block as pure functions: forward, and a backward pass derived by hand.

A block is two halves, `x + attention(norm1(x))` and `x + mlp(norm2(x))`; each half is a `forward(x) → y, saved` and a
`backward(dy, saved) → dx, gradients` over the operations of `edgetune.model.ops`. What is `saved` is the whole memory
of the backward pass, by name and nothing else:

    attention   x · qkv · out (mixed values, before the projection) · mean, rstd, lse (a few numbers a token)
    mlp         x · pre (before the GELU) · mean, rstd

which in units of the width is 5 + 1 + M / C a token (M the hidden width), where eager autograd keeps 9 + 2 M / C and
LayerScale two more. The normalised inputs, the activated hidden layer and the scaled branches are computed again, one
pass over memory each. A frozen half saves the same: what its weights' gradients would need on top is all recomputed.

With y = γ (W a + b) on a residual branch and g = dy: dW = γ gᵀa row by row, db = γ Σg, and the gradient of LayerScale's
factor follows without saving the branch's output: dγ = rowsum(W ∘ gᵀa) + b Σg.

Of the last block only the tokens that the classifier reads matter; `readers` says how many, and the work for all other
queries is left out. The gradients are the same to the last bit of their zeros.

T. Dao et al., arXiv 2205.14135 (attention's backward pass from its log-sum-exp); J. Ba et al., arXiv 1607.06450.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Generic, Literal, NamedTuple, Protocol, TypeVar

from edgetune.model.ops import Ops

T = TypeVar("T")
Gradients = dict[str, T]

# The parameters of each half by timm's names within a block, matrices before vectors.
ATTENTION = ("attn.qkv.weight", "attn.proj.weight", "attn.qkv.bias", "attn.proj.bias", "norm1.weight", "norm1.bias")
MLP = ("mlp.fc1.weight", "mlp.fc2.weight", "mlp.fc1.bias", "mlp.fc2.bias", "norm2.weight", "norm2.bias")
ATTENTION_SCALE, MLP_SCALE = "ls1.gamma", "ls2.gamma"
# Factors of a low-rank correction, towards the inside and towards the output; see `attention_forward`.
LORA_QKV = ("attn.qkv.lora_a", "attn.qkv.lora_b")
LORA_PROJ = ("attn.proj.lora_a", "attn.proj.lora_b")
ATTENTION_NAMES = frozenset((*ATTENTION, ATTENTION_SCALE, *LORA_QKV, *LORA_PROJ))
MLP_NAMES = frozenset((*MLP, MLP_SCALE))
_READ_NORMED = frozenset(("attn.qkv.weight", *LORA_QKV))
_NORM1 = frozenset(("norm1.weight", "norm1.bias"))
_BEFORE_ATTENTION = _READ_NORMED | _NORM1 | {"attn.qkv.bias"}
# Tokens with which matrix products reach their rate, unless the model is wider (benchmarks/gemm_share.py).
_PART_TOKENS = 800
Half = Literal["attention", "mlp"]


def part_tokens(width: int) -> int:
    """Tokens that should pass a block of that width together, where memory allows.

    A weight's gradient is a product over the tokens, added to what other parts gave: with fewer tokens than the weight
    has columns, more time goes into reading and writing the sum than into it.
    """
    return max(_PART_TOKENS, width)


def half_of(name: str) -> Half:
    """The half that a parameter belongs to, by its name in the whole model, `blocks.<index>.…`."""
    return "mlp" if name.split(".", 2)[2] in MLP_NAMES else "attention"


class Shape(NamedTuple):
    """What the arithmetic has to know of a block besides its weights."""

    heads: int
    eps: float  # of the norms


class Saved(Protocol[T]):
    """What a half keeps for its backward pass. The caller decides how: exactly, in fewer bits, or not at all."""

    def put(self, name: str, values: T) -> None:
        """Keep a tensor. `x` may be written over after this returns; the others may not."""

    def take(self, name: str) -> T:
        """Give it back, once."""


class Forward(NamedTuple, Generic[T]):
    """What a half's forward pass gives: its output, and the attention received where it was asked for."""

    y: T
    received: T | None = None


class Backward(NamedTuple, Generic[T]):
    """Gradients towards a half's input (None where nobody needs it) and towards its weights."""

    dx: T | None
    gradients: Gradients[T]


def attention_forward(
    ops: Ops[T],
    x: T,
    weights: Mapping[str, T],
    shape: Shape,
    saved: Saved[T],
    *,
    readers: int | None = None,
    observe: int | None = None,
) -> Forward[T]:
    """First half of a block.

    Args:
        ops: how to compute.
        x: (B, N, C); may be written over.
        weights: by the names of `ATTENTION`, and `ATTENTION_SCALE` where the model has it. Where low-rank factors
            train (arXiv 2106.09685), those of `LORA_QKV` and `LORA_PROJ`, each times its scale; the product is part of
            the matrix already.
        shape: heads and epsilon.
        saved: where to keep what the backward pass needs.
        readers: only the outputs of the first so many tokens are needed; None: all. y is (B, readers, C) then.
        observe: also give the attention that the first so many tokens pay to every token.
    """
    normed, mean, rstd = ops.layer_norm(x, weights["norm1.weight"], weights["norm1.bias"], shape.eps)
    for name, values in (("x", x), ("mean", mean), ("rstd", rstd)):
        saved.put(name, values)
    weight, bias = weights["attn.qkv.weight"], weights["attn.qkv.bias"]
    if readers is None:
        qkv = ops.linear(normed, weight, bias)
        saved.put("qkv", qkv)
        q, k, v = ops.split(qkv, 3)
    else:
        width = ops.size(x)
        q = ops.linear(ops.first_tokens(normed, readers), ops.first_rows(weight, width), ops.first_rows(bias, width))
        kv = ops.linear(normed, ops.later_rows(weight, width), ops.later_rows(bias, width))
        saved.put("q", q)
        saved.put("kv", kv)
        k, v = ops.split(kv, 2)
    del normed
    received = None
    if observe is not None:
        received = ops.attention_received(ops.first_tokens(q, observe), k, shape.heads)
    out, lse = ops.attention(q, k, v, shape.heads)
    saved.put("out", out)
    saved.put("lse", lse)
    stream = x if readers is None else ops.first_tokens(x, readers)
    y = ops.linear_add(
        stream, out, weights["attn.proj.weight"], weights["attn.proj.bias"], weights.get(ATTENTION_SCALE)
    )
    return Forward(y, received)


def attention_backward(
    ops: Ops[T],
    dy: T,
    saved: Saved[T],
    weights: Mapping[str, T],
    shape: Shape,
    *,
    needs: Set[str],
    totals: Gradients[T] | None = None,
    input_needed: bool = True,
    readers: int | None = None,
    unscaled: bool = False,
) -> Backward[T]:
    """Backward pass of `attention_forward`; what it takes from `saved` is free as soon as it was used.

    Args:
        ops: how to compute.
        dy: gradient of the output; may be written over.
        saved: of the forward pass.
        weights: as in the forward pass.
        shape: as in the forward pass.
        needs: names of the weights whose gradients are wanted.
        totals: gradients so far, to be added to.
        input_needed: whether the gradient towards x is wanted.
        readers: as in the forward pass.
        unscaled: leave LayerScale out of the sums of the layer before it, and its own gradient to who has them whole:
            γ gᵀa needs no product of its own then.
    """
    gradients = dict(totals or {})
    out = saved.take("out")
    gamma = weights.get(ATTENTION_SCALE)
    branch = None if unscaled else gamma
    _branch_weights(ops, dy, out, weights, "attn.proj", ATTENTION_SCALE, branch, needs, gradients)
    if not needs & _BEFORE_ATTENTION and not input_needed:
        return Backward(None, gradients)
    d_branch = dy if gamma is None else ops.scale(dy, gamma)
    _factors(ops, d_branch, out, weights, "attn.proj", needs, gradients)
    d_out = ops.linear_input(d_branch, weights["attn.proj.weight"])
    del d_branch
    if readers is None:
        q, k, v = ops.split(saved.take("qkv"), 3)
    else:
        q, (k, v) = saved.take("q"), ops.split(saved.take("kv"), 2)
    dq, dk, dv = ops.attention_input(d_out, q, k, v, out, saved.take("lse"), shape.heads)
    del q, k, v, out, d_out
    x, mean, rstd = saved.take("x"), saved.take("mean"), saved.take("rstd")
    weight = weights["attn.qkv.weight"]
    if readers is None:
        d_qkv = ops.join([dq, dk, dv])
        del dq, dk, dv
        if "attn.qkv.bias" in needs:
            gradients["attn.qkv.bias"] = ops.sum_tokens(d_qkv, gradients.get("attn.qkv.bias"))
        if needs & _READ_NORMED:
            normed, _, _ = ops.layer_norm(x, weights["norm1.weight"], weights["norm1.bias"], shape.eps)
            if "attn.qkv.weight" in needs:
                gradients["attn.qkv.weight"] = ops.linear_weight(d_qkv, normed, gradients.get("attn.qkv.weight"))
            _factors(ops, d_qkv, normed, weights, "attn.qkv", needs, gradients)
            del normed
        if not input_needed and not needs & _NORM1:
            return Backward(None, gradients)
        d_normed = ops.linear_input(d_qkv, weight)
    else:
        d_kv = ops.join([dk, dv])
        del dk, dv
        width = ops.size(x)
        if "attn.qkv.bias" in needs:
            d_bias = ops.stack_rows(ops.sum_tokens(dq), ops.sum_tokens(d_kv))
            gradients["attn.qkv.bias"] = _added(ops, gradients.get("attn.qkv.bias"), d_bias)
        if needs & _READ_NORMED:
            normed, _, _ = ops.layer_norm(x, weights["norm1.weight"], weights["norm1.bias"], shape.eps)
            asking = ops.first_tokens(normed, readers)
            if "attn.qkv.weight" in needs:
                total = gradients.get("attn.qkv.weight")
                gradients["attn.qkv.weight"] = ops.linear_weights(dq, asking, d_kv, normed, total)
            # the factor towards the output lies row by row like the weight, the other sees both
            if LORA_QKV[1] in needs:
                inward = weights[LORA_QKV[0]]
                d_outward = ops.stack_rows(
                    ops.linear_weight(dq, ops.linear(asking, inward, None)),
                    ops.linear_weight(d_kv, ops.linear(normed, inward, None)),
                )
                gradients[LORA_QKV[1]] = _added(ops, gradients.get(LORA_QKV[1]), d_outward)
            if LORA_QKV[0] in needs:
                outward = weights[LORA_QKV[1]]
                total = gradients.get(LORA_QKV[0])
                total = ops.linear_weight(ops.linear_input(dq, ops.first_rows(outward, width)), asking, total)
                d_kv_inward = ops.linear_input(d_kv, ops.later_rows(outward, width))
                gradients[LORA_QKV[0]] = ops.linear_weight(d_kv_inward, normed, total)
            del normed, asking
        if not input_needed and not needs & _NORM1:
            return Backward(None, gradients)
        d_normed = ops.add(
            ops.linear_input(d_kv, ops.later_rows(weight, width)),
            ops.pad_tokens(ops.linear_input(dq, ops.first_rows(weight, width)), x),
        )
    stream = None if not input_needed else dy if readers is None else ops.pad_tokens(dy, x)
    return Backward(_norm(ops, d_normed, (x, mean, rstd), weights, "norm1", needs, gradients, stream), gradients)


def mlp_forward(ops: Ops[T], x: T, weights: Mapping[str, T], shape: Shape, saved: Saved[T]) -> Forward[T]:
    """Second half of a block; see `attention_forward`."""
    normed, mean, rstd = ops.layer_norm(x, weights["norm2.weight"], weights["norm2.bias"], shape.eps)
    for name, values in (("x", x), ("mean", mean), ("rstd", rstd)):
        saved.put(name, values)
    pre = ops.linear(normed, weights["mlp.fc1.weight"], weights["mlp.fc1.bias"])
    del normed
    saved.put("pre", pre)
    hidden = ops.gelu(pre)
    del pre
    return Forward(
        ops.linear_add(x, hidden, weights["mlp.fc2.weight"], weights["mlp.fc2.bias"], weights.get(MLP_SCALE))
    )


def mlp_backward(
    ops: Ops[T],
    dy: T,
    saved: Saved[T],
    weights: Mapping[str, T],
    shape: Shape,
    *,
    needs: Set[str],
    totals: Gradients[T] | None = None,
    input_needed: bool = True,
    unscaled: bool = False,
) -> Backward[T]:
    """Backward pass of `mlp_forward`; see `attention_backward`."""
    gradients = dict(totals or {})
    pre = saved.take("pre")
    gamma = weights.get(MLP_SCALE)
    if needs & {"mlp.fc2.weight", "mlp.fc2.bias", MLP_SCALE}:
        branch = None if unscaled else gamma
        _branch_weights(ops, dy, ops.gelu(pre), weights, "mlp.fc2", MLP_SCALE, branch, needs, gradients)
    inner = needs & {"mlp.fc1.weight", "mlp.fc1.bias", "norm2.weight", "norm2.bias"}
    if not inner and not input_needed:
        return Backward(None, gradients)
    d_hidden = ops.linear_input(dy if gamma is None else ops.scale(dy, gamma), weights["mlp.fc2.weight"])
    d_pre = ops.gelu_input(d_hidden, pre)
    del d_hidden, pre
    x, mean, rstd = saved.take("x"), saved.take("mean"), saved.take("rstd")
    if "mlp.fc1.bias" in needs:
        gradients["mlp.fc1.bias"] = ops.sum_tokens(d_pre, gradients.get("mlp.fc1.bias"))
    if "mlp.fc1.weight" in needs:
        normed, _, _ = ops.layer_norm(x, weights["norm2.weight"], weights["norm2.bias"], shape.eps)
        gradients["mlp.fc1.weight"] = ops.linear_weight(d_pre, normed, gradients.get("mlp.fc1.weight"))
        del normed
    d_normed = ops.linear_input(d_pre, weights["mlp.fc1.weight"])
    del d_pre
    stream = dy if input_needed else None
    return Backward(_norm(ops, d_normed, (x, mean, rstd), weights, "norm2", needs, gradients, stream), gradients)


def _branch_weights(
    ops: Ops[T],
    dy: T,
    inputs: T,
    weights: Mapping[str, T],
    layer: str,
    scale_name: str,
    gamma: T | None,
    needs: Set[str],
    gradients: Gradients[T],
) -> None:
    """Gradients of the layer that ends a residual branch, and of its LayerScale; see the module."""
    weight, bias = layer + ".weight", layer + ".bias"
    outer = ops.linear_weight(dy, inputs) if gamma is not None and needs & {weight, scale_name} else None
    total = ops.sum_tokens(dy) if gamma is not None and needs & {bias, scale_name} else None
    if scale_name in needs and outer is not None and total is not None:
        d_gamma = ops.add(ops.dot_rows(outer, weights[weight]), ops.scale(total, weights[bias]))
        gradients[scale_name] = _added(ops, gradients.get(scale_name), d_gamma)
    if weight in needs:
        if outer is None or gamma is None:
            gradients[weight] = ops.linear_weight(dy, inputs, gradients.get(weight))
        else:
            gradients[weight] = ops.add_scaled_rows(gradients.get(weight), outer, gamma)
    if bias in needs:
        if total is None or gamma is None:
            gradients[bias] = ops.sum_tokens(dy, gradients.get(bias))
        else:
            gradients[bias] = _added(ops, gradients.get(bias), ops.scale(total, gamma))


def _factors(
    ops: Ops[T], dy: T, x: T, weights: Mapping[str, T], layer: str, needs: Set[str], gradients: Gradients[T]
) -> None:
    """Gradients of a layer's low-rank factors, y = x (W + B A)ᵀ: dB = dyᵀ (x Aᵀ), dA = (dy B)ᵀ x."""
    inward, outward = layer + ".lora_a", layer + ".lora_b"
    if outward in needs:
        inner = ops.linear(x, weights[inward], None)
        gradients[outward] = ops.linear_weight(dy, inner, gradients.get(outward))
    if inward in needs:
        d_inner = ops.linear_input(dy, weights[outward])
        gradients[inward] = ops.linear_weight(d_inner, x, gradients.get(inward))


def _norm(
    ops: Ops[T],
    d_normed: T,
    saved: tuple[T, T, T],
    weights: Mapping[str, T],
    layer: str,
    needs: Set[str],
    gradients: Gradients[T],
    stream: T | None,
) -> T | None:
    """Gradients of a half's norm; added to the stream's where that is wanted.

    Args:
        ops: how to compute.
        d_normed: gradient of what the norm gave.
        saved: its input, and mean and inverse standard deviation.
        weights: of the half.
        layer: which norm.
        needs: names of the weights whose gradients are wanted.
        gradients: sums so far, by name.
        stream: gradient of the residual stream; None: that towards the input is not wanted.
    """
    weight, bias = layer + ".weight", layer + ".bias"
    if weight in needs and bias in needs:  # as a rule: one pass gives everything
        totals = gradients.get(weight), gradients.get(bias)
        dx, gradients[weight], gradients[bias] = ops.layer_norm_backward(
            d_normed, *saved, weights[weight], totals, stream
        )
        return dx
    if weight in needs:
        gradients[weight] = ops.layer_norm_weight(d_normed, *saved, gradients.get(weight))
    if bias in needs:
        gradients[bias] = ops.sum_tokens(d_normed, gradients.get(bias))
    return None if stream is None else ops.layer_norm_input(d_normed, *saved, weights[weight], stream)


def _added(ops: Ops[T], total: T | None, term: T) -> T:
    return term if total is None else ops.add(total, term)
