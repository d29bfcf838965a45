"""The optimizer of a run."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from edgetune.schema import Plan


def build_optimizer(plan: Plan, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
    """One optimizer over every parameter that may ever train; frozen ones must not be passed.

    Biases, norms, tokens, position embeddings and layer scales take no weight decay, as in timm. State is allocated
    when a parameter first gets a gradient, and stays while its block is frozen.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in named_parameters:
        exempt = parameter.ndim < 2 or name.endswith(("_token", "pos_embed"))
        (plain if exempt else decayed).append(parameter)
    groups = [
        {"params": parameters, "weight_decay": weight_decay}
        for parameters, weight_decay in ((decayed, plan.recipe.weight_decay), (plain, 0.0))
        if parameters
    ]
    if plan.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=plan.recipe.learning_rate, momentum=0.9)
    kind = torch.optim.AdamW if plan.optimizer == "adamw" else torch.optim.Adam
    # fused: one pass over each tensor and no temporary copies, on the CPU too (torch 2.4 and later)
    return kind(groups, lr=plan.recipe.learning_rate, fused=True)
