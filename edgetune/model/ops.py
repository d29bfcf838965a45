"""The operations that a transformer block's forward and backward pass are written in.

`edgetune.model.block` uses nothing else, so whoever implements this table gets the whole training step: with torch
(`edgetune.model.torch_ops`, where fused kernels stand in), or as an ONNX graph (`edgetune.model.onnx_ops`).

Shapes: B images, N tokens, C width, H heads, D = C / H. `x` is (B, N, ...) throughout; weights are (out, in). An
argument called `total` is a sum under way: the result is that sum with the new term added, and an implementation may
write it into the memory of `total`. None starts a sum. Likewise `into` may be overwritten by the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

T = TypeVar("T")


class Ops(Protocol[T]):
    """Operations on tensors of type T."""

    def linear(self, x: T, weight: T, bias: T | None) -> T:
        """`x weightᵀ + bias`, (B, N, in) to (B, N, out)."""

    def linear_add(self, into: T, x: T, weight: T, bias: T | None, scale: T | None) -> T:
        """`into + scale · (x weightᵀ + bias)`; `scale` (out,) is LayerScale's factor, None is 1."""

    def linear_input(self, dy: T, weight: T) -> T:
        """Gradient of `linear` towards its input: `dy weight`."""

    def linear_weight(self, dy: T, x: T, total: T | None = None) -> T:
        """Gradient of `linear` towards its weight: `dyᵀ x` over all tokens, (out, in)."""

    def linear_weights(self, dy: T, x: T, dy_below: T, x_below: T, total: T | None = None) -> T:
        """The same of a weight whose lower rows saw other tokens: `dyᵀ x` above `dy_belowᵀ x_below`."""

    def sum_tokens(self, dy: T, total: T | None = None) -> T:
        """Sum over images and tokens, (B, N, out) to (out,): the gradient of a bias."""

    def layer_norm(self, x: T, weight: T, bias: T, eps: float) -> tuple[T, T, T]:
        """Normalised and scaled x; mean and inverse standard deviation of every token, (B, N, 1)."""

    def layer_norm_input(self, dy: T, x: T, mean: T, rstd: T, weight: T, into: T) -> T:
        """`into` plus the gradient of `layer_norm` towards x."""

    def layer_norm_weight(self, dy: T, x: T, mean: T, rstd: T, total: T | None = None) -> T:
        """Gradient of `layer_norm` towards its weight, (C,)."""

    def layer_norm_backward(
        self, dy: T, x: T, mean: T, rstd: T, weight: T, totals: tuple[T | None, T | None], into: T | None
    ) -> tuple[T | None, T, T]:
        """All gradients of `layer_norm` at once: `into` plus that towards x, and the sums of weight's and bias's.

        Without `into` the first is not wanted.
        """

    def gelu(self, x: T) -> T:
        """Exact (erf) GELU."""

    def gelu_input(self, dy: T, x: T) -> T:
        """Gradient of `gelu` towards x, which may be written into dy."""

    def attention(self, q: T, k: T, v: T, heads: int) -> tuple[T, T]:
        """Attend with queries (B, M, C) over keys and values (B, N, C).

        Returns:
            The mixed values (B, M, C), and the log-sum-exp of every row of scaled scores (B, H, M).
        """

    def attention_input(self, dy: T, q: T, k: T, v: T, out: T, lse: T, heads: int) -> tuple[T, T, T]:
        """Gradients of `attention` towards q, k and v; `out` and `lse` are what it returned."""

    def attention_received(self, q: T, k: T, heads: int) -> T:
        """Attention that the tokens of q give to every token of k, mean over these and the heads: (B, N)."""

    def size(self, x: T) -> int:
        """Length of the last axis."""

    def split(self, x: T, parts: int) -> list[T]:
        """Equal parts of the last axis."""

    def join(self, parts: Sequence[T]) -> T:
        """Tensors side by side along the last axis."""

    def first_rows(self, x: T, count: int) -> T:
        """The first `count` entries of the first axis."""

    def later_rows(self, x: T, start: int) -> T:
        """What `first_rows` leaves."""

    def first_tokens(self, x: T, count: int) -> T:
        """The first `count` tokens, (B, count, C)."""

    def pad_tokens(self, x: T, like: T) -> T:
        """The tokens x (B, M, C), followed by zeros up to the length of `like` (B, N, C)."""

    def stack_rows(self, upper: T, lower: T) -> T:
        """One tensor below another along the first axis."""

    def scale(self, x: T, factor: T) -> T:
        """`x · factor`, broadcast over the leading axes."""

    def add_scaled_rows(self, total: T | None, weight: T, factor: T) -> T:
        """`weight` (out, in), each row times its `factor` (out,), added to `total`; either may be written over."""

    def dot_rows(self, left: T, right: T) -> T:
        """Per row, the sum of the products: (out, in) twice to (out,)."""

    def add(self, left: T, right: T) -> T:
        """`left + right`, which may be written into left."""
