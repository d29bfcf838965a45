"""Run folders as `fit` leaves them, made up: any length, any gap, any awkward name."""

from __future__ import annotations

import io
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgetune import schema

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
MIB = 2**20


def a_profile() -> schema.Profile:
    return schema.Profile(
        board=schema.Board(name="Raspberry Pi 5", family="raspberry-pi", soc="BCM2712", os="Debian 12", arch="aarch64"),
        memory=schema.Memory(total_bytes=8 * 2**30, available_bytes=7 * 2**30, swap_bytes=0, unified=False),
        power=schema.Power(source="pmic_read_adc", scope="pmic-sum", total_w=3.1, idle_w=2.7, measured=True),
        modes=schema.Modes(current=None),
        throttle={"under_voltage": 0},
        compute=schema.Compute(
            engine="torch",
            engine_version="2.10",
            device="cpu",
            threads=4,
            cores=4,
            gemm_flops={"fp32": 6.1e10, "bf16": None},
            copy_bytes_per_s=5.1e9,
            runtime_bytes=210 * MIB,
        ),
        warnings=["The fan is not running."],
        edgetune_version="0.1.0",
        created="2026-11-23T04:00:00+00:00",
    )


def a_plan(classes: list[str], blocks: int, epochs: int, steps_per_epoch: int, patches: int) -> schema.Plan:
    keep = [max(8, round(patches * 0.95 ** (index + 1))) for index in range(blocks)]
    return schema.Plan(
        model="vit_small_patch14_dinov2",
        weights="weights/small.safetensors",
        image_size=98,
        method="edgetune",
        engine="torch",
        device="cpu",
        threads=4,
        workers=0,
        seed=0,
        power_w=None,
        data=schema.DataFacts(path="photos/animals", classes=classes, train_images=2500, val_images=2000, split="val"),
        caps=schema.Caps(memory_bytes=700 * MIB, memory_source="--memory", energy_j=9000.0, time_s=3600.0),
        batch_size=32,
        micro_batch_size=16,
        trainer="lean",
        precision="fp32",
        frozen_precision="bf16",
        frozen_weights="disk",
        optimizer="adamw",
        optimizer_state="int8",
        saved_activations="full",
        saved_precision="int8",
        part_tokens=400,
        feature_cache=schema.FeatureCachePlan(
            precision="fp16", views=2, tokens=50, train_bytes=183 * MIB, val_bytes=73 * MIB
        ),
        allocator="fast",
        blocks=[
            schema.BlockPlan(
                index=index,
                trainable=index >= blocks // 3,
                keep_max_tokens=keep[index],
                keep_min_tokens=keep[index] // 2,
            )
            for index in range(blocks)
        ],
        k=max(1, blocks // 2),
        lowest_trainable_block=blocks // 3,
        embeddings_trainable=False,
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        total_steps=epochs * steps_per_epoch,
        wanted_epochs=epochs,
        recipe=schema.Recipe(learning_rate=1e-4, weight_decay=0.05, warmup_steps=20, label_smoothing=0.1, patience=5),
        alast=schema.AlastPlan(mode="constrained"),
        lora=None,
        predicted=schema.Predicted(
            peak_memory_bytes=589 * MIB,
            memory=schema.MemoryBill(
                runtime=210 * MIB,
                weights=84 * MIB,
                gradients=56 * MIB,
                optimizer=112 * MIB,
                activations=94 * MIB,
                workspace=21 * MIB,
                data=12 * MIB,
            ),
            step_s=1.9,
            epoch_s=150.0,
            total_s=480.0,
            epoch_energy_j=None,
            total_energy_j=None,
            train_flops_per_image=9_400_000_000,
        ),
        why=[
            "Batch 32 in passes of 16: the largest that leaves the activations of eight blocks under the cap.",
            "Blocks 0 to 3 stay as they are: training them would cost 96 MiB more and 38 % more time.",
            "Features of block 3 are cached on disk, since nothing below it changes between epochs.",
        ],
        warnings=[],
        edgetune_version="0.1.0",
        created="2026-11-23T04:01:00+00:00",
    )


def a_result(plan: schema.Plan, **changes: Any) -> schema.Result:
    draw = random.Random(2)
    result = schema.Result(
        stopped_by="epochs",
        accuracy=schema.Accuracy(
            best=0.9335,
            last=0.931,
            best_epoch=plan.epochs - 1,
            classes={name: round(draw.uniform(0.82, 0.99), 3) for name in plan.data.classes},
        ),
        memory=schema.MemoryResult(
            cap_bytes=plan.caps.memory_bytes,
            baseline_bytes=204 * MIB,
            predicted_peak_bytes=589 * MIB,
            measured_peak_bytes=571 * MIB,
            device_peak_bytes=None,
        ),
        time=schema.TimeResult(total_s=521.0, epochs_s=[151.0] * plan.epochs, eval_s=41.0, save_s=3.2),
        energy=schema.EnergyResult(
            cap_j=9000.0,
            total_j=3210.0,
            net_j=1790.0,
            epochs_j=[930.0] * plan.epochs,
            source="pmic_read_adc",
            scope="pmic-sum",
            measured=True,
        ),
        work=schema.Work(
            images=2500 * plan.epochs,
            train_flops=int(8.8e9) * 2500 * plan.epochs,
            trained_block_steps=1500,
            mean_keep=[0.95 ** (block.index + 1) for block in plan.blocks],
            bytes_written=150 * MIB,
        ),
        throttled=False,
        warnings=["photos/animals/train/cat/0017.jpg is not an image and was skipped."],
        edgetune_version="0.1.0",
        created="2026-11-23T04:20:00+00:00",
    )
    return msgspec.structs.replace(result, **changes)


def metric_lines(plan: schema.Plan, patches: int, *, steps: int | None = None, power: bool = True) -> list[str]:
    draw = random.Random(1)
    total = plan.total_steps if steps is None else steps
    lines, budgets = [], [0.9] * len(plan.blocks)
    for step in range(1, total + 1):
        budgets = [
            min(1.0, max(0.5, budget + draw.gauss(0.0006 * (index - 5), 0.004))) for index, budget in enumerate(budgets)
        ]
        tokens, left = [], float(patches)
        for budget in budgets:
            left = math.floor(left * budget)
            tokens.append(left)
        lines.append(
            json.dumps(
                {
                    "kind": "step",
                    "step": step,
                    "epoch": (step - 1) // plan.steps_per_epoch,
                    "loss": 2.3 * math.exp(-3 * step / total) + draw.uniform(0.1, 0.3),
                    "lr": 1e-4 * (1 - step / (total + 1)),
                    "images_per_s": draw.uniform(16, 18),
                    "memory_bytes": int((540 + 30 * min(1, step / 20)) * MIB),
                    "power_w": draw.uniform(5.8, 6.6) if power else None,
                    "energy_j": 11.0 * step if power else None,
                    "k": plan.k,
                    "trained_blocks": sorted(
                        draw.sample(
                            range(plan.lowest_trainable_block, len(plan.blocks)),
                            min(plan.k, len(plan.blocks) - plan.lowest_trainable_block),
                        )
                    ),
                    "tokens_per_block": tokens,
                    "budgets": budgets,
                }
            )
        )
        if step % plan.steps_per_epoch == 0:
            epoch = step // plan.steps_per_epoch
            lines.append(
                json.dumps(
                    {
                        "kind": "epoch",
                        "epoch": epoch - 1,
                        "step": step,
                        "train_loss": 0.9 / epoch,
                        "val_loss": 0.8 / epoch**0.5,
                        "val_accuracy": 0.95 - 0.2 / epoch,
                        "images": 2500,
                        "epoch_s": 151.0,
                        "energy_j": 930.0 if power else None,
                        "memory_bytes": 571 * MIB,
                        "images_per_s": 16.6,
                    }
                )
            )
        if step == total // 2:
            lines.append(
                json.dumps({"kind": "event", "step": step, "event": "governor", "message": "k 8 → 6: memory is short."})
            )
    return lines


def some_mistakes(classes: list[str]) -> schema.Mistakes:
    from PIL import Image

    draw = random.Random(3)
    images = []
    for number in range(10):
        picture = Image.effect_noise((96, 96), 60 + 5 * number).convert("RGB")
        written = io.BytesIO()
        picture.save(written, "JPEG", quality=80)
        true = draw.randrange(len(classes))
        images.append(
            schema.WrongImage(
                path=f"val/{classes[true]}/{number:04d}.jpg",
                true=true,
                predicted=(true + 1) % len(classes),
                confidence=0.999 - 0.01 * number,
                thumbnail_jpeg=written.getvalue(),
            )
        )
    confusion = [
        schema.Confusion(true=true, predicted=predicted, images=180 if true == predicted else draw.randrange(1, 9))
        for true in range(len(classes))
        for predicted in range(len(classes))
        if true == predicted or draw.random() < 0.5
    ]
    return schema.Mistakes(
        images=2000, classes=classes, confusion=confusion, most_confident=images, created="2026-11-23T04:20:00+00:00"
    )


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Write a run folder; keyword arguments choose its size and what is missing."""

    def write(
        name: str = "run",
        *,
        classes: list[str] = CLASSES,
        blocks: int = 12,
        epochs: int = 3,
        steps_per_epoch: int = 79,
        patches: int = 49,
        steps: int | None = None,
        power: bool = True,
        profile: bool = True,
        result: bool = True,
        mistakes: bool = True,
        metrics: bool = True,
        checkpoint: bool = True,
        plan_changes: dict[str, Any] | None = None,
        result_changes: dict[str, Any] | None = None,
    ) -> Path:
        run = tmp_path / name
        run.mkdir(parents=True)
        plan = msgspec.structs.replace(
            a_plan(classes, blocks, epochs, steps_per_epoch, patches), **(plan_changes or {})
        )
        schema.save(plan, run / "plan.json")
        (run / "state").mkdir()
        if checkpoint:
            (run / "best.safetensors").write_bytes(b"weights")
        if profile:
            schema.save(a_profile(), run / "profile.json")
        if result:
            schema.save(a_result(plan, **(result_changes or {})), run / "result.json")
        if mistakes:
            schema.save(some_mistakes(classes), run / "mistakes.json")
        if metrics:
            (run / "metrics.jsonl").write_text("\n".join(metric_lines(plan, patches, steps=steps, power=power)) + "\n")
        return run

    return write
