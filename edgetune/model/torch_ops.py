"""`edgetune.model.ops` in torch: eager kernels, written into place where the caller allows it, no autograd.

On the CPU attention is torch's flash kernel, called below autograd because its log-sum-exp is what the backward pass
needs. On other devices the same fused attention is reached through autograd, which runs its forward pass once more.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

_aten = torch.ops.aten


class TorchOps:
    """See `edgetune.model.ops.Ops`.

    Args:
        compute: type in which matrices are multiplied; None is the type they come in. With bfloat16, what a matrix
            product gives is bfloat16 too; the residual stream, norms and sums stay in the stream's own type.
    """

    def __init__(self, compute: torch.dtype | None = None) -> None:
        self._compute = compute

    def _cast(self, x: Tensor) -> Tensor:
        return x if self._compute is None else x.to(self._compute)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(self._cast(x), self._cast(weight), None if bias is None else self._cast(bias))

    def linear_add(self, into: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None) -> Tensor:
        if scale is not None:
            return into.addcmul_(self.linear(x, weight, bias).to(into.dtype), scale)
        if self._compute is not None or not into.is_contiguous():  # the latter: part of a longer sequence
            return into.add_(self.linear(x, weight, bias))
        if bias is not None:
            into.add_(bias)
        _rows(into).addmm_(_rows(x), weight.t())
        return into

    def linear_input(self, dy: Tensor, weight: Tensor) -> Tensor:
        return self._cast(dy) @ self._cast(weight)

    def linear_weight(self, dy: Tensor, x: Tensor, total: Tensor | None = None) -> Tensor:
        dy, x = self._cast(_rows(dy)), self._cast(_rows(x))
        if total is None:
            return dy.t() @ x
        return total.add_(dy.t() @ x) if dy.dtype != total.dtype else total.addmm_(dy.t(), x)

    def linear_weights(
        self, dy: Tensor, x: Tensor, dy_below: Tensor, x_below: Tensor, total: Tensor | None = None
    ) -> Tensor:
        if total is None:
            return torch.cat([self.linear_weight(dy, x), self.linear_weight(dy_below, x_below)])
        rows = dy.shape[-1]
        self.linear_weight(dy, x, total[:rows])
        self.linear_weight(dy_below, x_below, total[rows:])
        return total

    def sum_tokens(self, dy: Tensor, total: Tensor | None = None) -> Tensor:
        if total is None:
            return _rows(dy).sum(0)
        return total.add_(_rows(dy).sum(0, dtype=total.dtype))

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        return torch.native_layer_norm(x, [x.shape[-1]], weight, bias, eps)

    def layer_norm_input(
        self, dy: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, into: Tensor
    ) -> Tensor:
        mask = [True, False, False]
        dx, _, _ = _aten.native_layer_norm_backward(dy.to(x.dtype), x, [x.shape[-1]], mean, rstd, weight, None, mask)
        return into.add_(dx)

    def layer_norm_weight(
        self, dy: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, total: Tensor | None = None
    ) -> Tensor:
        return self.sum_tokens((x - mean).mul_(rstd).mul_(dy), total)

    def layer_norm_backward(
        self,
        dy: Tensor,
        x: Tensor,
        mean: Tensor,
        rstd: Tensor,
        weight: Tensor,
        totals: tuple[Tensor | None, Tensor | None],
        into: Tensor | None,
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        # the mask asks for each; the bias is there for its size alone
        mask = [into is not None, True, True]
        dx, *sums = _aten.native_layer_norm_backward(dy.to(x.dtype), x, [x.shape[-1]], mean, rstd, weight, weight, mask)
        d_weight, d_bias = (
            term if total is None else total.add_(term) for total, term in zip(totals, sums, strict=True)
        )
        return None if into is None else into.add_(dx), d_weight, d_bias

    def gelu(self, x: Tensor) -> Tensor:
        return F.gelu(x)

    def gelu_input(self, dy: Tensor, x: Tensor) -> Tensor:
        dy = dy.to(x.dtype)
        gradient: Tensor = _aten.gelu_backward.grad_input(dy, x, approximate="none", grad_input=dy)
        return gradient

    def attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> tuple[Tensor, Tensor]:
        q, k, v = _by_head(q, heads), _by_head(k, heads), _by_head(v, heads)
        if q.device.type == "cpu":
            out, lse = _aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
        else:
            out, lse = F.scaled_dot_product_attention(q, k, v), q.new_empty(0)
        return _together(out), lse

    def attention_input(
        self, dy: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, heads: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        dy, q, k, v, out = (_by_head(self._cast(part), heads) for part in (dy, q, k, v, out))
        if q.device.type == "cpu":
            gradients = _aten._scaled_dot_product_flash_attention_for_cpu_backward(dy, q, k, v, out, lse, 0.0, False)
        else:
            with torch.enable_grad():
                q, k, v = (part.detach().requires_grad_() for part in (q, k, v))
                gradients = torch.autograd.grad(F.scaled_dot_product_attention(q, k, v), (q, k, v), dy)
        dq, dk, dv = (_together(gradient) for gradient in gradients)
        return dq, dk, dv

    def attention_received(self, q: Tensor, k: Tensor, heads: int) -> Tensor:
        q, k = _by_head(q, heads), _by_head(k, heads)
        scores = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5
        received: Tensor = scores.float().softmax(-1).mean((1, 2))
        return received

    def size(self, x: Tensor) -> int:
        return x.shape[-1]

    def split(self, x: Tensor, parts: int) -> list[Tensor]:
        return list(x.chunk(parts, -1))

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(parts), -1)

    def first_rows(self, x: Tensor, count: int) -> Tensor:
        return x[:count]

    def later_rows(self, x: Tensor, start: int) -> Tensor:
        return x[start:]

    def first_tokens(self, x: Tensor, count: int) -> Tensor:
        return x[:, :count]

    def pad_tokens(self, x: Tensor, like: Tensor) -> Tensor:
        return F.pad(x, (0, 0, 0, like.shape[1] - x.shape[1]))

    def stack_rows(self, upper: Tensor, lower: Tensor) -> Tensor:
        return torch.cat([upper, lower])

    def scale(self, x: Tensor, factor: Tensor) -> Tensor:
        return x * factor

    def add_scaled_rows(self, total: Tensor | None, weight: Tensor, factor: Tensor) -> Tensor:
        weight = weight.to(factor.dtype)  # what a product in fewer bits gave; a gradient has all of them
        return weight.mul_(factor[:, None]) if total is None else total.addcmul_(weight, factor[:, None])

    def dot_rows(self, left: Tensor, right: Tensor) -> Tensor:
        dots: Tensor = torch.linalg.vecdot(left.to(right.dtype), right)  # makes nothing of a matrix's size
        return dots

    def add(self, left: Tensor, right: Tensor) -> Tensor:
        return left.add_(right)


def _rows(x: Tensor) -> Tensor:
    """All tokens of all images as the rows of a matrix."""
    return x.reshape(-1, x.shape[-1])


def _by_head(x: Tensor, heads: int) -> Tensor:
    """(B, N, C) to (B, H, N, D), a view."""
    return x.view(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def _together(x: Tensor) -> Tensor:
    """(B, H, N, D) to (B, N, C)."""
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], -1)
