"""Train with the artifacts of `edgetune export --format ort-training`, with onnxruntime-training and numpy alone.

    python examples/train_with_ort.py ARTIFACTS BATCHES.npz [LEARNING_RATE]

BATCHES.npz holds `images` (steps, batch, 3, S, S), float32, prepared as `edgetune.json` says, and `labels` (steps,
batch), int64. Prints one JSON object: the loss of every step, seconds a step, the process's peak memory.
"""

import importlib.util
import json
import sys
import time
import types
from pathlib import Path

import numpy as np

# `import onnxruntime.training` would import torch, for a class that is not used here
package = types.ModuleType("onnxruntime.training")
package.__path__ = [str(Path(importlib.util.find_spec("onnxruntime").origin).parent / "training")]
sys.modules |= {"onnxruntime.training": package, "onnxruntime.training.ortmodule": None}

from onnxruntime.training.api import CheckpointState, Module, Optimizer  # noqa: E402 — once the stand-in is there

folder, batches = Path(sys.argv[1]), np.load(sys.argv[2])
manifest = json.loads((folder / "edgetune.json").read_text())
state = CheckpointState.load_checkpoint(str(folder / "checkpoint"))
module = Module(str(folder / "training_model.onnx"), state, str(folder / "eval_model.onnx"))
optimizer = Optimizer(str(folder / "optimizer_model.onnx"), module)
optimizer.set_learning_rate(float(sys.argv[3]) if len(sys.argv) > 3 else manifest["optimizer"]["learning_rate"])
before = {name: np.array(parameter.data) for name, parameter in state.parameters}

losses, seconds = [], []
for images, labels in zip(batches["images"], batches["labels"], strict=True):
    start = time.perf_counter()
    module.train()
    loss, _ = module(images, labels)
    optimizer.step()
    module.lazy_reset_grad()
    losses.append(float(loss))
    seconds.append(time.perf_counter() - start)

changed = [name for name, parameter in state.parameters if not np.array_equal(before[name], parameter.data)]
status = Path("/proc/self/status").read_text()
peak_bytes = 1024 * int(status.split("VmHWM:")[1].split()[0])
print(
    json.dumps(
        {"losses": losses, "changed": changed, "step_s": sorted(seconds)[len(seconds) // 2], "peak_bytes": peak_bytes}
    )
)
