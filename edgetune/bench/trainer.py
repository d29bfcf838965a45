"""transformers' Trainer with PEFT's adapters on timm's model, as their users run them.

    python -m edgetune.bench.trainer METHOD PLAN.json FIGURES.json [ROOT]

`peft-lora`: adapters on the attention's qkv and proj of every block and a trained classifier, where edgetune's `lora`
has them, with its rank, alpha and rate; the Trainer's own optimizer (torch's fused AdamW), cosine with warm-up, label
smoothing. timm's model comes in transformers' own wrapper for such models, whose one product for q, k and v is faster
than three. `peft-lorafa`: PEFT's LoRA-FA optimizer, which freezes A (arXiv 2308.03303). Nothing is logged or saved.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_lorafa_optimizer
from transformers import (
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from edgetune.bench import eager
from edgetune.bench.recorder import Recorder
from edgetune.bench.records import Figures
from edgetune.bench.shared import accuracy_of, initial_weights, loaders, spec_of
from edgetune.data.loader import Loader
from edgetune.export.timm import timm_config
from edgetune.measure import warm_up_torch
from edgetune.schema import LoraPlan, Plan

_ADAPTED = r".*\.attn\.(qkv|proj)"


class _Batches:
    """The loader's batches as the Trainer takes them; each iteration is the next epoch."""

    def __init__(self, loader: Loader) -> None:
        self._loader, self._epoch = loader, 0
        self.images = 0  # of the batch handed out last

    def __len__(self) -> int:
        return self._loader.batches

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        epoch, self._epoch = self._epoch, self._epoch + 1
        for batch in self._loader.epoch(epoch):
            self.images = len(batch.labels)
            yield {"pixel_values": torch.from_numpy(batch.images), "labels": torch.from_numpy(batch.labels)}


class _Trainer(Trainer):  # type: ignore[misc]
    """A Trainer over ready-made batches, which remembers its last loss."""

    batches: _Batches
    last_loss = torch.zeros(())

    def get_train_dataloader(self) -> Any:
        return self.batches

    def training_step(self, *arguments: Any, **named: Any) -> torch.Tensor:
        self.last_loss = super().training_step(*arguments, **named)
        return self.last_loss


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Tells the recorder where epochs and steps begin and end."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self.trainer: _Trainer

    def on_epoch_begin(self, *arguments: Any, **named: Any) -> None:
        self._recorder.begin_epoch()

    def on_step_end(self, *arguments: Any, **named: Any) -> None:
        self._recorder.note_step(self.trainer.last_loss.item(), self.trainer.batches.images)

    def on_epoch_end(self, *arguments: Any, **named: Any) -> None:
        self._recorder.end_epoch()


def run(method: str, plan: Plan, root: Path | None = None) -> Figures:
    """Train adapters as `plan`, one of `--method lora`, says of data, rate, rank and epochs.

    Raises:
        DivergedError: the loss stopped being a number.
    """
    lora = plan.lora or LoraPlan()
    with Recorder(plan, lambda: _warm_up(plan), root=root) as recorder, tempfile.TemporaryDirectory() as scratch:
        torch.manual_seed(plan.seed)
        train, val = loaders(plan)
        model = get_peft_model(
            _wrapped(plan),
            LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=_ADAPTED, modules_to_save=["head"]),
        )
        optimizer = None
        if method == "peft-lorafa":
            optimizer = create_lorafa_optimizer(
                model,
                r=lora.rank,
                lora_alpha=lora.alpha,
                lr=plan.recipe.learning_rate,
                weight_decay=plan.recipe.weight_decay,
            )
        watch = _Watch(recorder)
        trainer = _Trainer(model=model, args=_arguments(plan, scratch), optimizers=(optimizer, None), callbacks=[watch])
        trainer.batches, watch.trainer = _Batches(train), trainer
        recorder.evaluate = lambda: accuracy_of(model, val, lambda answer: answer.logits)
        trainer.train()
        return recorder.finish((*train.warnings, *val.warnings))


def _warm_up(plan: Plan) -> None:
    """As for the eager loop; every library has been imported with this module."""
    warm_up_torch(plan.threads)
    weight = torch.nn.Parameter(torch.zeros(1))
    weight.grad = torch.zeros(1)
    torch.optim.AdamW([weight], fused=True).step()


def _wrapped(plan: Plan) -> Any:
    """The model of timm as transformers wraps it, with the weights edgetune starts from."""
    spec = spec_of(plan)
    config = timm_config(spec, plan.data.classes)
    made = TimmWrapperForImageClassification(
        TimmWrapperConfig(
            architecture=config["architecture"],
            model_args=config["model_args"],
            num_labels=spec.classes,
            do_pooling=True,
        )
    )
    made.timm_model.load_state_dict(initial_weights(plan))
    return made


def _arguments(plan: Plan, scratch: str) -> TrainingArguments:
    recipe = plan.recipe
    return TrainingArguments(
        output_dir=scratch,
        num_train_epochs=plan.epochs,
        per_device_train_batch_size=plan.batch_size,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        warmup_steps=recipe.warmup_steps,
        lr_scheduler_type=recipe.schedule,
        label_smoothing_factor=recipe.label_smoothing,
        seed=plan.seed,
        use_cpu=plan.device == "cpu",
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_num_workers=0,
    )


if __name__ == "__main__":
    eager.main(sys.argv[1:], run)
