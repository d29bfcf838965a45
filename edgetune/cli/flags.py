"""Options that several commands share: how each is written, and one line of help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Data = Annotated[
    str | None, typer.Argument(metavar="DATA", help="Image folder: train/<class>/* with val/<class>/*, or <class>/*.")
]
Model = Annotated[str | None, typer.Option(help="timm name of a plain ViT; `edgetune models` lists them.")]
Weights = Annotated[
    str | None, typer.Option(metavar="FILE", help="A .safetensors file (timm, torchvision or transformers names).")
]
Profile = Annotated[str | None, typer.Option(metavar="FILE", help="From `edgetune profile --out`.")]
Memory = Annotated[str | None, typer.Option(metavar="SIZE", help="Most memory of the whole process: 1.5GB, 512MiB.")]
Energy = Annotated[str | None, typer.Option(metavar="E", help="Most energy: 20kJ, 5Wh.")]
Time = Annotated[str | None, typer.Option(metavar="T", help="Most time: 30min, 2h.")]
Disk = Annotated[str | None, typer.Option(metavar="SIZE", help="Most disk for cached features.")]
Power = Annotated[
    str | None, typer.Option(metavar="W", help="What the machine draws under load, where no sensor says.")
]
Epochs = Annotated[int | None, typer.Option(min=1, help="Passes over the training images.")]
Batch = Annotated[int | None, typer.Option("--batch-size", min=1, help="Images per optimizer step.")]
ImageSize = Annotated[int | None, typer.Option("--image-size", min=1, metavar="PX", help="Side in pixels.")]
Rate = Annotated[float | None, typer.Option("--lr", min=0.0, help="Peak learning rate.")]
Patience = Annotated[int | None, typer.Option(min=1, help="Stop after this many evaluations without a gain.")]
Evaluate = Annotated[int | None, typer.Option(min=1, metavar="N", help="Evaluate every N epochs, and at the end.")]
EvaluateSteps = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Also evaluate every N steps, for the record; chooses nothing."),
]
Root = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Read sensors below another file-system root, as containers mount it."),
]
Augment = Annotated[bool | None, typer.Option("--augment/--no-augment", help="Train on random crops.")]
Flip = Annotated[bool | None, typer.Option("--flip/--no-flip", help="Mirror half of them; not for digits or text.")]
Method = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="edgetune, alast, full, checkpoint, head, last-K, lora, alast-lora or random-k."),
]
Engine = Annotated[str | None, typer.Option(metavar="auto|torch|onnx", help="What does the arithmetic.")]
Device = Annotated[str | None, typer.Option(metavar="cpu|cuda", help="Where it runs.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Compute threads.")]
Workers = Annotated[int | None, typer.Option(min=0, help="Decoding processes; 0 decodes in the main one.")]
Lever = Annotated[
    list[str] | None, typer.Option("--lever", metavar="NAME=VALUE", help="Set a lever by hand; may be repeated.")
]
Seed = Annotated[int | None, typer.Option(min=0, help="Of split, order, augmentation, draw and new weights.")]
Config = Annotated[Path | None, typer.Option(metavar="FILE", help="TOML or JSON with these options; flags win.")]
Json = Annotated[bool, typer.Option("--json", help="Print the JSON artifact and nothing else.")]
