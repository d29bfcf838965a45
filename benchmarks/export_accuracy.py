"""What an export costs in accuracy: torch, ONNX in float32 and ONNX in 8 bits on the same labelled images.

    python benchmarks/export_accuracy.py run --model vit_nano_patch8_64 --data PATH/TO/cifar10 --images 2000
    python benchmarks/export_accuracy.py run --model runs/first --data photos
    python benchmarks/export_accuracy.py table

Images are the folder's validation images, or evenly many of them. The model must know the folder's classes. A run adds
one line to `results/export_accuracy.jsonl`; `table` prints the last line of each model and folder as Markdown.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from machine import append, lines
from numpy.typing import NDArray

from edgetune.data.folder import scan
from edgetune.data.preprocess import normalise, read
from edgetune.export import export
from edgetune.model.checkpoint import find_source

NAME = "export_accuracy"
BATCH = 32
FORMATS = ("onnx", "onnx-int8")


def measure(model: str, weights: Path | None, data: Path, most: int) -> dict[str, Any]:
    """One line of the results."""
    source = find_source(model, weights)
    folder = scan(data)
    if folder.classes != source.classes:
        raise SystemExit(f"{data} has other classes than {model}: {folder.classes} and {source.classes}.")
    count = min(most, len(folder.val))
    samples = [folder.val[index * len(folder.val) // count] for index in range(count)]
    labels = np.array([sample.label for sample in samples])
    network = source.load()
    with tempfile.TemporaryDirectory() as scratch:
        sessions, sizes = {}, {}
        for kind in FORMATS:
            report = export(model, kind, Path(scratch) / f"{kind}.onnx", weights=weights)
            sizes[kind] = report.size_bytes
            sessions[kind] = onnxruntime.InferenceSession(report.path, providers=["CPUExecutionProvider"])
        answers: dict[str, list[NDArray[np.float32]]] = {kind: [] for kind in ("torch", *FORMATS)}
        for start in range(0, count, BATCH):
            pixels = [read(sample.path, source.spec.image_size) for sample in samples[start : start + BATCH]]
            images = normalise(np.stack(pixels), source.spec.mean, source.spec.std)
            with torch.inference_mode():
                answers["torch"].append(network(torch.from_numpy(images)).numpy())
            for kind, session in sessions.items():
                answers[kind].append(session.run(["logits"], {"images": images})[0])
    logits = {kind: np.concatenate(values) for kind, values in answers.items()}
    return {
        "model": source.spec.name,
        "data": data.name,
        "images": count,
        "image_size": source.spec.image_size,
        "size_bytes": sizes,
        "accuracy": {kind: float((values.argmax(1) == labels).mean()) for kind, values in logits.items()},
        "same_answer": {kind: float((logits[kind].argmax(1) == logits["torch"].argmax(1)).mean()) for kind in FORMATS},
        "max_abs_difference": {kind: float(np.abs(logits[kind] - logits["torch"]).max()) for kind in FORMATS},
    }


def table() -> None:
    """Markdown: the last line of each model and folder."""
    last = {(line["model"], line["data"]): line for line in lines(NAME)}
    print("| model, images | format | size | accuracy | answers as torch | largest difference of a logit |")
    print("|---|---|---:|---:|---:|---:|")
    for line in last.values():
        what = f"{line['model']}, {line['images']} of {line['data']}"
        print(f"| {what} | torch | | {line['accuracy']['torch']:.2%} | | |")
        for kind in FORMATS:
            print(
                f"| | {kind} | {line['size_bytes'][kind] / 1e6:.1f} MB | {line['accuracy'][kind]:.2%}"
                f" | {line['same_answer'][kind]:.2%} | {line['max_abs_difference'][kind]:.1g} |"
            )


def main() -> None:
    """Parse and dispatch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("--model", required=True, help="a run folder, or a model's name")
    running.add_argument("--weights", type=Path)
    running.add_argument("--data", type=Path, required=True)
    running.add_argument("--images", type=int, default=2000)
    commands.add_parser("table")
    arguments = parser.parse_args()
    if arguments.command == "table":
        table()
        return
    append(NAME, measure(arguments.model, arguments.weights, arguments.data, arguments.images))


if __name__ == "__main__":
    main()
