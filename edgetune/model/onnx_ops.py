"""`edgetune.model.ops` as an ONNX graph: `edgetune.model.block`, run over these, writes a block's forward and backward.

Operators are those of opset 17 alone, chosen so that an ordinary runtime has a fast kernel for each or fuses it, and so
that batch and number of tokens stay open. What has tokens is kept as the rows of one matrix, (B · N, C): a linear layer
is then one Gemm in each direction, which takes weights as they are stored, (out, in), and adds to a sum under way. Only
attention, and cutting or padding a sequence, see images; a runtime's Reshape copies nothing.

The backward pass computes cheap things again from the same inputs with the same operators. A runtime that merges equal
subexpressions keeps the forward pass's results for it instead: the same numbers, more memory. To onnxruntime's session,
pass `MERGES` as `disabled_optimizers`. A runtime also computes in an order of its own, and may do early what was
meant for later.

ONNX operators: https://onnx.ai/onnx/operators/; attention's backward pass as in T. Dao et al., arXiv 2205.14135.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from edgetune.model.onnx_graph import Graph

MERGES = ["CommonSubexpressionElimination"]  # passes of onnxruntime that keep what was to be computed again


class Value(NamedTuple):
    """A tensor of the graph."""

    name: str
    shape: tuple[int, ...]  # where there are tokens: of each of them
    tokens: str | int | None = None  # to an image: their number, or the tensor (1,) that holds it; None: not of images


NOTHING = Value("", ())  # under ONNX's name for a tensor that is left out; a graph has nothing to keep for it


class OnnxOps:
    """See `edgetune.model.ops.Ops`.

    Args:
        graph: where the operators go.
        scope: what their names begin with; may be changed between calls.
    """

    def __init__(self, graph: Graph, scope: str = "") -> None:
        self.scope = scope
        self._graph = graph
        self._once: dict[tuple[Any, ...], str] = {}
        self._names: Counter[str] = Counter()

    def tokens(self, name: str, width: int, tokens: str | int | None = None) -> Value:
        """A tensor (B, N, C) that the graph has already, as a value.

        Args:
            name: the tensor.
            width: C.
            tokens: N where it is fixed, or `tokens` of another value that has as many; None: read from the tensor.
        """
        if tokens is None:
            tokens = self._add("Shape", [name], "tokens", start=1, end=2)
        return self._rows(name, width, tokens)

    def output(self, value: Value, name: str) -> str:
        """Give a value a name, as a result of the graph; tokens become (B, N, C) again."""
        if value.tokens is None:
            return str(self._graph.add("Identity", [value.name], name))
        return str(self._graph.add("Reshape", [value.name, self._shape(value.tokens, *value.shape)], name))

    def linear(self, x: Value, weight: Value, bias: Value | None) -> Value:
        return self._gemm(x, weight, bias)

    def linear_add(self, into: Value, x: Value, weight: Value, bias: Value | None, scale: Value | None) -> Value:
        y = self._gemm(x, weight, bias)
        return self.add(into, y if scale is None else self.scale(y, scale))

    def linear_input(self, dy: Value, weight: Value) -> Value:
        return Value(self._add("Gemm", [dy.name, weight.name], "d_input"), weight.shape[1:], dy.tokens)

    def linear_weight(self, dy: Value, x: Value, total: Value | None = None) -> Value:
        inputs = [dy.name, x.name] if total is None else [dy.name, x.name, total.name]
        return Value(self._add("Gemm", inputs, "d_weight", transA=1), dy.shape + x.shape)

    def linear_weights(self, dy: Value, x: Value, dy_below: Value, x_below: Value, total: Value | None = None) -> Value:
        found = self.stack_rows(self.linear_weight(dy, x), self.linear_weight(dy_below, x_below))
        return found if total is None else self.add(total, found)

    def sum_tokens(self, dy: Value, total: Value | None = None) -> Value:
        found = Value(self._add("ReduceSum", [dy.name, self._graph.shape(0)], "d_bias", keepdims=0), dy.shape)
        return found if total is None else self.add(total, found)

    def layer_norm(self, x: Value, weight: Value, bias: Value, eps: float) -> tuple[Value, Value, Value]:
        inputs = [x.name, weight.name, bias.name]
        y, mean, rstd = self._many("LayerNormalization", inputs, "norm", 3, axis=-1, epsilon=eps)
        return x._replace(name=y), Value(mean, (1,), x.tokens), Value(rstd, (1,), x.tokens)

    def layer_norm_input(self, dy: Value, x: Value, mean: Value, rstd: Value, weight: Value, into: Value) -> Value:
        normal, g = self._normal(x, mean, rstd), self._add("Mul", [dy.name, weight.name], "g")
        along = self._mean(self._add("Mul", [g, normal], "g_normal"), "along")
        g_mean = self._mean(g, "g_mean")
        g = self._add("Sub", [g, self._add("Mul", [normal, along], "g_along")], "g_across")
        g = self._add("Mul", [self._add("Sub", [g, g_mean], "g_centred"), rstd.name], "g_scaled")
        return self.add(into, x._replace(name=g))

    def layer_norm_weight(self, dy: Value, x: Value, mean: Value, rstd: Value, total: Value | None = None) -> Value:
        product = self._add("Mul", [dy.name, self._normal(x, mean, rstd)], "dy_normal")
        return self.sum_tokens(x._replace(name=product), total)

    def layer_norm_backward(
        self,
        dy: Value,
        x: Value,
        mean: Value,
        rstd: Value,
        weight: Value,
        totals: tuple[Value | None, Value | None],
        into: Value | None,
    ) -> tuple[Value | None, Value, Value]:
        d_weight = self.layer_norm_weight(dy, x, mean, rstd, totals[0])
        d_bias = self.sum_tokens(dy, totals[1])
        dx = None if into is None else self.layer_norm_input(dy, x, mean, rstd, weight, into)
        return dx, d_weight, d_bias

    def gelu(self, x: Value) -> Value:
        """The five operators that runtimes know for GELU and replace by one."""
        erf = self._add("Erf", [self._add("Div", [x.name, self._number("root_two", math.sqrt(2))], "gelu_in")], "erf")
        gate = self._add("Mul", [x.name, self._add("Add", [erf, self._number("one", 1)], "erf_one")], "gate")
        return x._replace(name=self._add("Mul", [gate, self._number("half", 0.5)], "gelu"))

    def gelu_input(self, dy: Value, x: Value) -> Value:
        """`½ dy (1 + erf u + 2/√π u e^(-u²))` with u = x / √2; the factor goes into the exponent, with the sign."""
        u = self._add("Mul", [x.name, self._number("root_half", math.sqrt(0.5))], "u")
        exponent = [self._number("log_two_over_root_pi", math.log(2 / math.sqrt(math.pi)))]
        bell = self._add("Exp", [self._add("Sub", [*exponent, self._add("Mul", [u, u], "u_u")], "exponent")], "bell")
        slope = [self._add("Erf", [u], "erf"), self._add("Mul", [u, bell], "u_bell"), self._number("one", 1)]
        d_twice = self._add("Mul", [dy.name, self._add("Sum", slope, "slope")], "d_twice")
        return x._replace(name=self._add("Mul", [d_twice, self._number("half", 0.5)], "d_pre"))

    def attention(self, q: Value, k: Value, v: Value, heads: int) -> tuple[Value, Value]:
        """The log-sum-exp is `NOTHING`: one Softmax is quicker than the operators that give and use it are together."""
        mixed = self._add("MatMul", [self._attend(q, k, heads), self._by_head(v, heads)], "mixed")
        return self._together(mixed, q), NOTHING

    def attention_input(
        self, dy: Value, q: Value, k: Value, v: Value, out: Value, lse: Value, heads: int
    ) -> tuple[Value, Value, Value]:
        weights = self._attend(q, k, heads)
        # dv = weightsᵀ dy and dk = d_scoresᵀ q are computed the other way round, so that no N x N matrix is transposed
        dv = self._add("MatMul", [self._by_head(dy, heads, across=True), weights], "dv_t")
        d_weights = self._add("MatMul", [self._by_head(dy, heads), self._by_head(v, heads, across=True)], "d_weights")
        d_weights = self._add("Sub", [d_weights, self._dot_by_head(dy, out, heads)], "d_weights_centred")
        d_scores = self._add("Mul", [weights, d_weights], "d_scores")
        factor = self._factor(q, heads)
        dq = self._add("MatMul", [d_scores, self._by_head(k, heads)], "dq_unscaled")
        dq = self._add("Mul", [dq, factor], "dq")
        scaled = self._add("Mul", [self._by_head(q, heads, across=True), factor], "q_scaled_t")
        dk = self._add("MatMul", [scaled, d_scores], "dk_t")
        return self._together(dq, q), self._together(dk, k, across=True), self._together(dv, v, across=True)

    def attention_received(self, q: Value, k: Value, heads: int) -> Value:
        weights = self._attend(q, k, heads)
        return Value(self._add("ReduceMean", [weights], "received", axes=[1, 2], keepdims=0), (), k.tokens)

    def size(self, x: Value) -> int:
        return x.shape[-1]

    def split(self, x: Value, parts: int) -> list[Value]:
        names = self._many("Split", [x.name], "part", parts, axis=-1)
        return [Value(name, (self.size(x) // parts,), x.tokens) for name in names]

    def join(self, parts: Sequence[Value]) -> Value:
        name = self._add("Concat", [part.name for part in parts], "joined", axis=-1)
        return Value(name, (sum(map(self.size, parts)),), parts[0].tokens)

    def first_rows(self, x: Value, count: int) -> Value:
        return Value(self._slice(x.name, 0, 0, count), (count, *x.shape[1:]))

    def later_rows(self, x: Value, start: int) -> Value:
        return Value(self._slice(x.name, 0, start, x.shape[0]), (x.shape[0] - start, *x.shape[1:]))

    def first_tokens(self, x: Value, count: int) -> Value:
        if x.tokens == count:
            return x
        return self._rows(self._slice(self._images(x), 1, 0, count), self.size(x), count)

    def pad_tokens(self, x: Value, like: Value) -> Value:
        assert like.tokens is not None, "only tokens can be padded"
        missing = [self._graph.shape(0, 0, 0, 0), self._missing(x, like), self._graph.shape(0)]
        pads = self._add_once("Concat", missing, "pads", axis=0)
        return self._rows(self._add("Pad", [self._images(x), pads], "padded"), self.size(x), like.tokens)

    def stack_rows(self, upper: Value, lower: Value) -> Value:
        name = self._add("Concat", [upper.name, lower.name], "stacked", axis=0)
        return Value(name, (upper.shape[0] + lower.shape[0], *upper.shape[1:]))

    def scale(self, x: Value, factor: Value) -> Value:
        return x._replace(name=self._add("Mul", [x.name, factor.name], "scaled"))

    def add_scaled_rows(self, total: Value | None, weight: Value, factor: Value) -> Value:
        column = self._add("Reshape", [factor.name, self._graph.shape(-1, 1)], "column")
        scaled = weight._replace(name=self._add("Mul", [weight.name, column], "scaled"))
        return scaled if total is None else self.add(total, scaled)

    def dot_rows(self, left: Value, right: Value) -> Value:
        product = self._add("Mul", [left.name, right.name], "product")
        return Value(self._add("ReduceSum", [product, self._graph.shape(1)], "dot", keepdims=0), left.shape[:1])

    def add(self, left: Value, right: Value) -> Value:
        return left._replace(name=self._add("Add", [left.name, right.name], "sum"))

    def _gemm(self, x: Value, weight: Value, bias: Value | None) -> Value:
        inputs = [x.name, weight.name] if bias is None else [x.name, weight.name, bias.name]
        return Value(self._add("Gemm", inputs, "linear", transB=1), weight.shape[:1], x.tokens)

    def _normal(self, x: Value, mean: Value, rstd: Value) -> str:
        """Tokens with mean 0 and variance 1, written out, for want of the epsilon that a norm would take."""
        return self._add_once("Mul", [self._add_once("Sub", [x.name, mean.name], "x_centred"), rstd.name], "x_normal")

    def _mean(self, x: str, label: str) -> str:
        return self._add("ReduceMean", [x], label, axes=[-1], keepdims=1)

    def _attend(self, q: Value, k: Value, heads: int) -> str:
        """Attention that every token of q pays to every one of k, (B, H, M, N)."""
        scaled = self._add("Mul", [self._by_head(q, heads), self._factor(q, heads)], "q_scaled")
        scores = self._add("MatMul", [scaled, self._by_head(k, heads, across=True)], "scores")
        return self._add("Softmax", [scores], "weights", axis=-1)

    def _factor(self, q: Value, heads: int) -> str:
        width = self.size(q) // heads
        return self._number(f"root_{width}_inverse", 1 / math.sqrt(width))

    def _dot_by_head(self, left: Value, right: Value, heads: int) -> str:
        """Sum of the products over each head's part of every token, (B, H, N, 1)."""
        assert left.tokens is not None, "only tokens have heads"
        product = self._add("Mul", [left.name, right.name], "product")
        apart = self._add("Reshape", [product, self._shape(left.tokens, heads, self.size(left) // heads)], "product_4d")
        dot = self._add("ReduceSum", [apart, self._graph.shape(3)], "dot", keepdims=1)
        return self._add("Transpose", [dot], "dot_t", perm=[0, 2, 1, 3])

    def _by_head(self, x: Value, heads: int, *, across: bool = False) -> str:
        """Tokens as (B, H, N, D), or (B, H, D, N)."""
        assert x.tokens is not None, "only tokens have heads"
        apart = self._add("Reshape", [x.name, self._shape(x.tokens, heads, self.size(x) // heads)], "heads")
        return self._add("Transpose", [apart], "heads_t", perm=[0, 2, 3, 1] if across else [0, 2, 1, 3])

    def _together(self, x: str, like: Value, *, across: bool = False) -> Value:
        """(B, H, N, D), or (B, H, D, N), as tokens again."""
        apart = self._add("Transpose", [x], "tokens_4d", perm=[0, 3, 1, 2] if across else [0, 2, 1, 3])
        return like._replace(name=self._add("Reshape", [apart, self._graph.shape(-1, self.size(like))], "together"))

    def _rows(self, name: str, width: int, tokens: str | int) -> Value:
        """(B, N, C) as rows."""
        return Value(self._add("Reshape", [name, self._graph.shape(-1, width)], "rows"), (width,), tokens)

    def _images(self, x: Value) -> str:
        """Rows as (B, N, C)."""
        assert x.tokens is not None, "only tokens belong to images"
        return self._add("Reshape", [x.name, self._shape(x.tokens, *x.shape)], "images")

    def _shape(self, tokens: str | int, *sides: int) -> str:
        """The shape (B, N, sides), B being what is left."""
        if isinstance(tokens, int):
            return self._graph.shape(-1, tokens, *sides)
        return self._add_once("Concat", [self._graph.shape(-1), tokens, self._graph.shape(*sides)], "sides", axis=0)

    def _missing(self, x: Value, like: Value) -> str:
        """Number of tokens, (1,), that x has less than another."""
        if isinstance(x.tokens, int) and isinstance(like.tokens, int):
            return self._graph.shape(like.tokens - x.tokens)
        longer, shorter = (
            self._graph.shape(value.tokens) if isinstance(value.tokens, int) else str(value.tokens)
            for value in (like, x)
        )
        return self._add_once("Sub", [longer, shorter], "missing")

    def _slice(self, name: str, axis: int, start: int, end: int) -> str:
        return self._add("Slice", [name, *(self._graph.shape(side) for side in (start, end, axis))], "slice")

    def _number(self, name: str, value: float) -> str:
        return self._graph.constant(name, np.array(value, np.float32))

    def _add_once(self, operator: str, inputs: Sequence[str], label: str, **attributes: Any) -> str:
        """The result of the same operator on the same tensors, where the graph has it."""
        key = (operator, *inputs)
        if key not in self._once:
            self._once[key] = self._add(operator, inputs, label, **attributes)
        return self._once[key]

    def _add(self, operator: str, inputs: Sequence[str], label: str, **attributes: Any) -> str:
        return str(self._graph.add(operator, inputs, self._name(label), **attributes))

    def _many(self, operator: str, inputs: Sequence[str], label: str, outputs: int, **attributes: Any) -> list[str]:
        return list(self._graph.add(operator, inputs, self._name(label), outputs, **attributes))

    def _name(self, label: str) -> str:
        """A name that is still free."""
        name = self.scope + label
        self._names[name] += 1
        return name if self._names[name] == 1 else f"{name}_{self._names[name]}"
