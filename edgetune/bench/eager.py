"""Full fine-tuning as people write it: timm's model, torch.optim.AdamW, an eager loop. What edgetune is compared with.

    python -m edgetune.bench.eager METHOD PLAN.json FIGURES.json

Nothing of edgetune's trainer runs here. What is shared is what a comparison must share: the images and their order
(`edgetune.data`), the initial weights (`edgetune.model` reads the file, timm's model takes the tensors), the learning
rate's course and label smoothing of the plan, and the meters. Every library is imported before the baseline is taken,
and an AdamW constructed, which imports most of torch's compiler: none of that is held against this method. Nor is
saving, since nothing is saved.
"""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import Any

import timm
import torch
from timm.optim import param_groups_weight_decay
from torch.nn import functional as F

from edgetune.bench.records import Figures
from edgetune.data.folder import scan
from edgetune.data.loader import Loader
from edgetune.errors import DivergedError, EdgetuneError
from edgetune.export.timm import timm_config
from edgetune.files import write_atomically
from edgetune.measure import PeakMeter, warm_up_torch
from edgetune.model.registry import find_spec
from edgetune.model.spec import ViTSpec
from edgetune.model.weights import build_model
from edgetune.schema import Plan, load, to_json
from edgetune.train.schedule import learning_rate


def run(method: str, plan: Plan) -> Figures:
    """Fine-tune every weight as `plan` says of data, rate and epochs; its caps, blocks and levers are not looked at.

    Raises:
        DivergedError: the loss stopped being a number.
    """
    memory = PeakMeter.start(lambda: _warm_up(plan))
    torch.manual_seed(plan.seed)
    spec = find_spec(plan.model).at(plan.image_size, len(plan.data.classes))
    train, val = _loaders(plan, spec)
    model = _load_model(plan, spec)
    optimizer = _optimizer(model, plan, fused=method == "eager-full-fused")
    epochs_s: list[float] = []
    losses: list[float] = []
    images = step = 0
    model.train()
    for epoch in range(plan.epochs):
        started, total, batches = time.monotonic(), 0.0, 0
        for batch in train.epoch(epoch):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(plan.recipe, step, plan.total_steps)
            labels = torch.from_numpy(batch.labels)
            logits = model(torch.from_numpy(batch.images))
            loss = F.cross_entropy(logits, labels, label_smoothing=plan.recipe.label_smoothing)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            total += loss.item()
            if not math.isfinite(total):
                raise DivergedError(f"--lr {plan.recipe.learning_rate:g} made the loss diverge; try a lower one.")
            images, batches, step = images + len(labels), batches + 1, step + 1
        epochs_s.append(time.monotonic() - started)
        losses.append(total / batches)

    started, right, seen = time.monotonic(), 0, 0
    model.eval()
    with torch.no_grad():
        for batch in val.epoch(0):
            answers = model(torch.from_numpy(batch.images)).argmax(1)
            right += int((answers == torch.from_numpy(batch.labels)).sum())
            seen += len(batch.labels)
    eval_s = time.monotonic() - started
    memory.stop()
    return Figures(
        baseline_bytes=memory.baseline_bytes,
        peak_bytes=memory.peak_bytes(),
        epochs_s=epochs_s,
        eval_s=eval_s,
        accuracy=right / seen if seen else None,
        train_losses=losses,
        images=images,
        train_flops_per_image=plan.predicted.train_flops_per_image,
        warnings=(*memory.warnings, *train.warnings, *val.warnings),
    )


def _warm_up(plan: Plan) -> None:
    """Threads, one dummy matrix product, and what the optimizer imports when it is constructed and first steps."""
    warm_up_torch(plan.threads)
    weight = torch.nn.Parameter(torch.zeros(1))
    weight.grad = torch.zeros(1)
    torch.optim.AdamW([weight]).step()


def _loaders(plan: Plan, spec: ViTSpec) -> tuple[Loader, Loader]:
    """The same batches as `edgetune fit` takes, decoded in this process."""
    folder = scan(plan.data.path, plan.seed)
    common: dict[str, Any] = {"image_size": plan.image_size, "mean": spec.mean, "std": spec.std, "seed": plan.seed}
    common["batch_size"] = plan.batch_size
    train = Loader(folder.train, augment=plan.recipe.augment, flip=plan.recipe.flip, **common)
    return train, Loader(folder.val, augment=False, shuffle=False, **common)


def _load_model(plan: Plan, spec: ViTSpec) -> Any:
    """A model of timm with the weights edgetune starts from: the file's, and a classifier from the same seed."""
    config = timm_config(spec, plan.data.classes)
    model = timm.create_model(config["architecture"], num_classes=spec.classes, **config["model_args"])
    weights = Path(plan.weights) if plan.weights else None
    ours, _ = build_model(spec, weights, class_names=plan.data.classes, seed=plan.seed)
    model.load_state_dict(ours.state_dict())
    return model


def _optimizer(model: Any, plan: Plan, *, fused: bool) -> torch.optim.Optimizer:
    """AdamW; biases, norms, tokens and positions without weight decay, as timm's own training script has it."""
    without = {*model.no_weight_decay(), "reg_token"}  # which older versions of timm leave out
    groups = param_groups_weight_decay(model, plan.recipe.weight_decay, no_weight_decay_list=without)
    return torch.optim.AdamW(groups, lr=plan.recipe.learning_rate, fused=True if fused else None)


def main(arguments: list[str]) -> None:
    """Run one method as a plan says, and write its figures."""
    method, plan, out = arguments
    try:
        write_atomically(Path(out), to_json(run(method, load(Path(plan), Plan))))
    except EdgetuneError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main(sys.argv[1:])
