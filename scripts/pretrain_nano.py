"""Pre-train the bundled `vit_nano_patch8_64` on CIFAR-10: the recipe, whole.

    python scripts/pretrain_nano.py --data PATH/TO/cifar10 --work runs/nano --out edgetune/bundled

Muon for the blocks' matrices and AdamW for the rest, bf16 autocast, flips and shifts, label smoothing. Most epochs see
a random half of the patches of each image (patch dropout, arXiv 2208.07220), the last ones more and then all of them,
which buys about twice the epochs for the same time. Every epoch leaves a state from which the same command goes on;
each prints one JSON line and appends it to `--work`/log.jsonl. The weights are written in half precision.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from edgetune.model.registry import find_spec
from edgetune.model.vit import VisionTransformer, initialise

SEED = 2408_08670
BATCH = 256
WARMUP_STEPS = 300
MUON_LR, ADAMW_LR, WEIGHT_DECAY = 4e-3, 2e-3, 0.05
SMOOTHING = 0.1
SHIFT_PX = 8
# (epochs, share of the patches each image keeps)
STAGES = ((12, 0.5), (1, 0.75), (1, 1.0))


def load(folder: Path, size: int, cache: Path) -> tuple[Tensor, Tensor]:
    """All images of `folder`/<class>/* at `size` pixels, uint8 (images, 3, size, size), and their labels."""
    if not cache.exists():
        images, labels = [], []
        for label, class_folder in enumerate(sorted(path for path in folder.iterdir() if path.is_dir())):
            for path in sorted(class_folder.iterdir()):
                with Image.open(path) as image:
                    images.append(np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)))
                labels.append(label)
        cache.parent.mkdir(parents=True, exist_ok=True)
        np.savez(cache, images=np.stack(images).transpose(0, 3, 1, 2), labels=np.array(labels))
    stored = np.load(cache)
    return torch.from_numpy(stored["images"]), torch.from_numpy(stored["labels"])


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Flip half of a batch (B, 3, S, S) and shift every image by up to `SHIFT_PX` pixels each way."""
    flips = torch.rand(len(images), generator=generator) < 0.5
    images = torch.where(flips[:, None, None, None], images.flip(-1), images)
    padded = F.pad(images, (SHIFT_PX,) * 4, mode="reflect")
    size = images.shape[-1]
    shifts = torch.randint(0, 2 * SHIFT_PX + 1, (len(images), 2), generator=generator).tolist()
    return torch.stack([image[:, y : y + size, x : x + size] for image, (y, x) in zip(padded, shifts, strict=True)])


def normalise(images: Tensor, model: VisionTransformer) -> Tensor:
    """uint8 images to the model's input."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (model.spec.mean, model.spec.std))
    return (images.float() / 255 - mean) / std


def logits_of(model: VisionTransformer, images: Tensor, keep: float, generator: torch.Generator) -> Tensor:
    """Forward pass on a random share `keep` of each image's patches."""
    x = model.embed(images)
    if keep < 1:
        scores = torch.rand(len(x), model.spec.patches, generator=generator)
        kept = scores.topk(round(keep * model.spec.patches), 1).indices + model.spec.prefix
        patches = x.gather(1, kept[:, :, None].expand(-1, -1, x.shape[-1]))
        x = torch.cat([x[:, : model.spec.prefix], patches], 1)
    for block in model.blocks:
        x, _ = block(x)
    return model.classify(x)


@torch.no_grad()
def accuracy(model: VisionTransformer, images: Tensor, labels: Tensor) -> float:
    """Top-1 accuracy in fp32."""
    hits = 0
    for start in range(0, len(images), 250):
        logits = model(normalise(images[start : start + 250], model))
        hits += int((logits.argmax(1) == labels[start : start + 250]).sum())
    return hits / len(images)


def optimizers(model: VisionTransformer) -> list[tuple[torch.optim.Optimizer, float]]:
    """Muon for the matrices inside the blocks, AdamW for everything else, each with its peak learning rate."""
    matrices = [p for name, p in model.named_parameters() if name.startswith("blocks.") and p.ndim == 2]
    vectors = [p for name, p in model.named_parameters() if not (name.startswith("blocks.") and p.ndim == 2)]
    muon = torch.optim.Muon(matrices, lr=MUON_LR, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(vectors, lr=ADAMW_LR, weight_decay=0.0, betas=(0.9, 0.99))
    return [(muon, MUON_LR), (adamw, ADAMW_LR)]


def rate(step: int, steps: int) -> float:
    """Linear warm-up, then cosine to zero."""
    if step < WARMUP_STEPS:
        return (step + 1) / WARMUP_STEPS
    return 0.5 * (1 + math.cos(math.pi * (step - WARMUP_STEPS) / max(1, steps - WARMUP_STEPS)))


def main() -> None:
    """Train, or go on training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/<class>/* and val/<class>/*")
    parser.add_argument("--work", type=Path, required=True, help="where state, log and decoded images go")
    parser.add_argument("--out", type=Path, required=True, help="where the finished weights go")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(SEED)
    spec = find_spec("vit_nano_patch8_64")
    model = VisionTransformer(spec)
    initialise(model)
    images, labels = load(arguments.data / "train", spec.image_size, arguments.work / "train.npz")
    val_images, val_labels = load(arguments.data / "val", spec.image_size, arguments.work / "val.npz")
    classes = sorted(path.name for path in (arguments.data / "train").iterdir())

    keeps = [keep for epochs, keep in STAGES for _ in range(epochs)]
    steps_per_epoch = len(images) // BATCH
    steps = steps_per_epoch * len(keeps)
    pairs = optimizers(model)
    state_file = arguments.work / "state.pt"
    first_epoch, seconds = 0, 0.0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        for (optimizer, _), saved in zip(pairs, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        first_epoch, seconds = state["epoch"] + 1, state["seconds"]

    for epoch in range(first_epoch, len(keeps)):
        started = time.monotonic()
        generator = torch.Generator().manual_seed(SEED + epoch)
        order = torch.randperm(len(images), generator=generator)
        losses = []
        for batch in range(steps_per_epoch):
            factor = rate(epoch * steps_per_epoch + batch, steps)
            for optimizer, peak in pairs:
                for group in optimizer.param_groups:
                    group["lr"] = peak * factor
            chosen = order[batch * BATCH : (batch + 1) * BATCH]
            inputs = normalise(augment(images[chosen], generator), model)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = logits_of(model, inputs, keeps[epoch], generator)
            loss = F.cross_entropy(logits.float(), labels[chosen], label_smoothing=SMOOTHING)
            loss.backward()
            for optimizer, _ in pairs:
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.item())
        seconds += time.monotonic() - started
        record = {
            "epoch": epoch,
            "keep": keeps[epoch],
            "loss": round(sum(losses) / len(losses), 4),
            "val_accuracy": accuracy(model, val_images, val_labels),
            "train_seconds": round(seconds),
        }
        print(json.dumps(record), flush=True)
        with open(arguments.work / "log.jsonl", "a") as log:
            log.write(json.dumps(record) + "\n")
        states = [optimizer.state_dict() for optimizer, _ in pairs]
        torch.save(
            {"model": model.state_dict(), "optimizers": states, "epoch": epoch, "seconds": seconds}, f"{state_file}.new"
        )
        os.replace(f"{state_file}.new", state_file)

    weights = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    halved = VisionTransformer(spec)
    halved.load_state_dict({name: value.float() for name, value in weights.items()})
    measured = accuracy(halved, val_images, val_labels)
    arguments.out.mkdir(parents=True, exist_ok=True)
    metadata = {"classes": json.dumps(classes), "seed": str(SEED), "val_accuracy": str(measured)}
    save_file(weights, arguments.out / f"{spec.name}.safetensors", metadata)
    print(json.dumps({"written": spec.name, "val_accuracy": measured, "train_seconds": round(seconds)}))


if __name__ == "__main__":
    main()
