"""timm's model in an eager PyTorch loop, as its users write one: the peers that edgetune is compared with first.

    python -m edgetune.bench.eager METHOD PLAN.json FIGURES.json [ROOT]

Nothing of edgetune's trainer runs here. What is shared is what a comparison must share (`edgetune.bench.shared`), the
learning rate's course and label smoothing of the plan, and the meters. Every library is imported before the baseline is
taken, and an optimizer constructed, which imports most of torch's compiler: none of that is held against this method.
Nor is saving, since nothing is saved. What torchao compiles in its first steps is part of them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from timm.optim import param_groups_weight_decay
from torch.nn import functional as F

from edgetune.bench.recorder import Recorder
from edgetune.bench.records import Figures
from edgetune.bench.shared import accuracy_of, load_model, loaders
from edgetune.errors import EdgetuneError
from edgetune.files import write_atomically
from edgetune.measure import warm_up_torch
from edgetune.schema import Plan, load, to_json
from edgetune.train.schedule import learning_rate

_EIGHT_BITS = "timm-adamw8bit"


def run(method: str, plan: Plan, root: Path | None = None) -> Figures:
    """Fine-tune every weight as `plan` says of data, rate and epochs; its caps, blocks and levers are not looked at.

    Raises:
        DivergedError: the loss stopped being a number.
    """
    compiles = method == _EIGHT_BITS  # in processes of its own
    with Recorder(plan, lambda: _warm_up(method, plan), root=root, children=compiles) as recorder:
        torch.manual_seed(plan.seed)
        train, val = loaders(plan)
        model = load_model(plan)
        if method == "timm-checkpoint":
            model.set_grad_checkpointing()
        optimizer = _optimizer(method, model, plan)
        recorder.evaluate = lambda: accuracy_of(model, val)
        step = 0
        model.train()
        for epoch in range(plan.epochs):
            recorder.begin_epoch()
            for batch in train.epoch(epoch):
                _set_rate(optimizer, learning_rate(plan.recipe, step, plan.total_steps))
                labels = torch.from_numpy(batch.labels)
                logits = model(torch.from_numpy(batch.images))
                loss = F.cross_entropy(logits, labels, label_smoothing=plan.recipe.label_smoothing)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                recorder.note_step(loss.item(), len(labels))
                step += 1
            recorder.end_epoch()
        return recorder.finish((*train.warnings, *val.warnings))


def _warm_up(method: str, plan: Plan) -> None:
    """Threads, one dummy matrix product, and what the optimizer imports when it is constructed and first steps."""
    warm_up_torch(plan.threads)
    weight = torch.nn.Parameter(torch.zeros(1))
    weight.grad = torch.zeros(1)
    torch.optim.AdamW([weight]).step()
    if method == _EIGHT_BITS:
        import_module("torchao.optim").AdamW8bit([torch.nn.Parameter(torch.zeros(1))])


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):  # torchao's, so that a new rate is no new compilation
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def _optimizer(method: str, model: Any, plan: Plan) -> torch.optim.Optimizer:
    """AdamW; biases, norms, tokens and positions without weight decay, as timm's own training script has it."""
    without = {*model.no_weight_decay(), "reg_token"}  # which older versions of timm leave out
    groups = param_groups_weight_decay(model, plan.recipe.weight_decay, no_weight_decay_list=without)
    if method == _EIGHT_BITS:
        made: torch.optim.Optimizer = import_module("torchao.optim").AdamW8bit(groups, lr=plan.recipe.learning_rate)
        return made
    fused = True if method == "eager-full-fused" else None
    return torch.optim.AdamW(groups, lr=plan.recipe.learning_rate, fused=fused)


def main(arguments: list[str], run: Callable[[str, Plan, Path | None], Figures] = run) -> None:
    """Run one method as a plan says, and write its figures."""
    method, plan, out, *root = arguments
    try:
        figures = run(method, load(Path(plan), Plan), Path(root[0]) if root else None)
        write_atomically(Path(out), to_json(figures))
    except EdgetuneError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main(sys.argv[1:])
