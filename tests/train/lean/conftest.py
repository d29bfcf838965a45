"""Small models of every architecture, each trained side by side by the lean engine and by autograd."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

from edgetune.data.loader import Batch
from edgetune.model.spec import ViTSpec
from edgetune.model.vit import VisionTransformer, initialise
from edgetune.model.weights import save_weights
from edgetune.plan.job import Job, job_for
from edgetune.plan.methods import find_method, with_levers
from edgetune.schema import AlastPlan, Plan
from edgetune.train.lean.engine import LeanEngine
from edgetune.train.torch_engine import TorchEngine

# Methods come with levers of their own; here every one of them is set.
EXACT_LEVERS = (
    "trainer=lean", "precision=fp32", "frozen_precision=fp32", "frozen_weights=fp32", "optimizer=adamw",
    "optimizer_state=fp32", "saved_activations=full", "saved_precision=fp32",
    "part_tokens=400", "feature_cache=off", "feature_views=1",
)  # fmt: skip
_COMMON: dict[str, Any] = {"width": 64, "depth": 4, "heads": 2, "patch_size": 8, "image_size": 32, "classes": 3}
SPECS = {
    "plain": ViTSpec(name="plain", **_COMMON),
    "registers": ViTSpec(
        name="registers", register_tokens=2, position_on_prefix=False, layer_scale=True, layer_scale_init=0.1, **_COMMON
    ),
    "distilled": ViTSpec(name="distilled", distillation_token=True, **_COMMON),
    "average": ViTSpec(name="average", pool="avg", **_COMMON),
    "no-class-token": ViTSpec(
        name="no-class-token", class_token=False, register_tokens=1, pool="avg", mlp_width=96, **_COMMON
    ),
}


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Small products gain nothing from more, and the sums keep one order."""
    torch.set_num_threads(1)


class Pair(NamedTuple):
    """The same weights in both engines."""

    lean: LeanEngine
    autograd: TorchEngine
    before: dict[str, Tensor]
    job: Job

    def weights(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What trains, as both have it now: lean first."""
        lean = {name: values.clone().cpu() for name, values in self.lean._trained_weights().items()}
        theirs = self.autograd.model.state_dict()
        return lean, {name: theirs[name].clone().cpu() for name in lean}


def make_batch(spec: ViTSpec, size: int, seed: int = 0) -> Batch:
    """Noise with labels."""
    rng = np.random.default_rng(seed)
    images = rng.standard_normal((size, 3, spec.image_size, spec.image_size), np.float32)
    return Batch(images, rng.integers(0, spec.classes, size))


def random_model(spec: ViTSpec, seed: int = 3) -> VisionTransformer:
    """A model none of whose parameters is at a special value."""
    torch.manual_seed(seed)
    model = VisionTransformer(spec)
    initialise(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn_like(parameter) * (0.1 if parameter.ndim < 2 else 0.06))
            if name.endswith("_token"):
                parameter.add_(torch.randn_like(parameter))
    return model


@pytest.fixture
def plan_of(plan_for: Any) -> Callable[..., tuple[Plan, Job]]:
    """A function that plans a job by hand: `(spec, method, *levers, …)`."""
    base = plan_for(method="head")

    def make(
        spec: ViTSpec,
        method: str,
        *levers: str,
        batch: int = 5,
        alast: AlastPlan | None = None,
        weight_decay: float = 0.0,
        device: Literal["cpu", "cuda"] = "cpu",
    ) -> tuple[Plan, Job]:
        chosen = with_levers(find_method(method, spec.depth), [*EXACT_LEVERS, *levers], spec.depth)
        chosen = chosen._replace(alast=alast)
        if method == "edgetune" and chosen.trained == spec.depth:
            chosen = chosen._replace(embeddings_trainable=True)
        job = job_for(chosen, spec, batch_size=batch, micro_batch_size=batch)
        given = chosen.levers
        plan = msgspec.structs.replace(
            base,
            device=device,
            model=spec.name,
            image_size=spec.image_size,
            method=method,
            batch_size=batch,
            micro_batch_size=batch,
            trainer="lean",
            precision=given.precision,
            frozen_precision=given.frozen_precision,
            frozen_weights=given.frozen_weights,
            optimizer=given.optimizer,
            optimizer_state=given.optimizer_state,
            saved_activations=given.saved_activations,
            recompute_share=given.recompute_share,
            saved_precision=given.saved_precision,
            feature_cache=None,
            blocks=job.blocks(),
            k=job.k,
            lowest_trainable_block=job.lowest,
            embeddings_trainable=chosen.embeddings_trainable,
            alast=alast,
            lora=chosen.lora,
            recipe=msgspec.structs.replace(base.recipe, weight_decay=weight_decay, label_smoothing=0.1),
        )
        return plan, job

    return make


@pytest.fixture
def pair(
    plan_of: Callable[..., tuple[Plan, Job]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Pair]:
    """A function that builds both engines: `(spec name or spec, method, *levers, …)` as `plan_of`'s."""

    def make(spec: str | ViTSpec, method: str = "full", *levers: str, **settings: Any) -> Pair:
        spec = SPECS[spec] if isinstance(spec, str) else spec
        monkeypatch.setattr("edgetune.train.lean.engine.find_spec", lambda name: spec)
        plan, job = plan_of(spec, method, *levers, **settings)
        model = random_model(spec)
        save_weights(tmp_path / "base", model, {})
        kind = "sgd" if plan.optimizer == "sgd-plain" else plan.optimizer  # its first step is the gradient itself
        theirs = msgspec.structs.replace(
            plan, optimizer=kind, optimizer_state="fp32", saved_precision="fp32", saved_activations="full"
        )
        before = {name: value.clone() for name, value in model.state_dict().items()}
        return Pair(LeanEngine(plan, tmp_path / "base"), TorchEngine(theirs, model), before, job)

    return make
