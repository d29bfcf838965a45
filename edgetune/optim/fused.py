"""The optimizer of a run: torch's fused update kernels, called directly.

`torch.optim` brings the whole compiler with it (constructing any of its optimizers imports `torch._dynamo`: about 150
MB of resident memory and 1.6 s where this was measured), which on a small board is more than the training. The kernels
are the ones `torch.optim.AdamW(fused=True)` calls; a test holds the two together.

D. Kingma and J. Ba, arXiv 1412.6980; I. Loshchilov and F. Hutter, arXiv 1711.05101.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from edgetune.optim.rules import BETAS, EPSILON, MOMENTUM, decays


def adam(
    kind: Literal["adamw", "adam"],
    parameters: list[Tensor],
    gradients: list[Tensor],
    first: list[Tensor],
    second: list[Tensor],
    steps: list[Tensor],
    learning_rate: float,
    weight_decay: float,
) -> None:
    """Update parameters and both moments in place, by AdamW or Adam; `steps` count this update already."""
    update = torch._fused_adamw_ if kind == "adamw" else torch._fused_adam_
    update(
        parameters,
        gradients,
        first,
        second,
        [],
        steps,
        lr=learning_rate,
        beta1=BETAS[0],
        beta2=BETAS[1],
        weight_decay=weight_decay,
        eps=EPSILON,
        amsgrad=False,
        maximize=False,
    )


class Optimizer:
    """AdamW, Adam (decay added to the gradient) or SGD with momentum over named parameters.

    Biases, norms, tokens, position embeddings and layer scales take no weight decay, as in timm. State is allocated
    when a parameter first gets a gradient, and stays while its block is frozen; one without a gradient is left alone.

    Args:
        kind: which rule.
        named_parameters: what may ever train; frozen weights must not be among them.
        weight_decay: of the matrices.
    """

    def __init__(
        self,
        kind: Literal["adamw", "adam", "sgd"],
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        weight_decay: float,
    ) -> None:
        self.kind = kind
        self.weight_decay = weight_decay
        self.parameters = dict(named_parameters)
        self.state: dict[str, dict[str, Tensor]] = {}
        self._fresh: set[str] = set()  # have state, but no update yet

    def zero_grad(self) -> None:
        """Let go of all gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Update every parameter that has a gradient; allocates nothing after `prepare`."""
        first = self.prepare()
        for decayed in (True, False):
            named = [
                (name, parameter)
                for name, parameter in self.parameters.items()
                if parameter.grad is not None and decays(name, parameter.shape) == decayed
            ]
            if named:
                self._update(named, first, learning_rate, self.weight_decay if decayed else 0.0)
        self._fresh.clear()

    def prepare(self) -> set[str]:
        """Allocate the state of parameters that have their first gradient; the names of those never updated yet.

        Apart from `step`, so that running out of memory here leaves every weight as it was.
        """
        for name, parameter in self.parameters.items():
            if parameter.grad is not None and name not in self.state:
                self._fresh.add(name)
                self.state[name] = self._new_state(parameter)
        return self._fresh

    def _update(
        self, named: list[tuple[str, nn.Parameter]], fresh: set[str], learning_rate: float, weight_decay: float
    ) -> None:
        parameters: list[Tensor] = [parameter for _, parameter in named]
        gradients = [parameter.grad for _, parameter in named if parameter.grad is not None]
        states = [self.state[name] for name, _ in named]
        if self.kind == "sgd":
            for first in (True, False):  # the first step's momentum is the gradient itself
                chosen = [place for place, (name, _) in enumerate(named) if (name in fresh) == first]
                if chosen:
                    torch._fused_sgd_(
                        [parameters[place] for place in chosen],
                        [gradients[place] for place in chosen],
                        [states[place]["momentum_buffer"] for place in chosen],
                        weight_decay=weight_decay,
                        momentum=MOMENTUM,
                        lr=learning_rate,
                        dampening=0.0,
                        nesterov=False,
                        maximize=False,
                        is_first_step=first,
                    )
            return
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1)
        adam(
            self.kind,
            parameters,
            gradients,
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            steps,
            learning_rate,
            weight_decay,
        )

    def _new_state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        if self.kind == "sgd":
            return {"momentum_buffer": torch.zeros_like(parameter)}
        return {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
