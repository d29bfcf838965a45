"""Train with the folder of `edgetune export --format train-onnx`, with onnxruntime and numpy alone.

    python examples/train_with_graphs.py GRAPHS BATCHES.npz [LEARNING_RATE]

BATCHES.npz holds `images` (steps, batch, 3, S, S), float32, prepared as `manifest.json` says, and `labels` (steps,
batch), int64. Prints the loss of every step as a JSON list.

A graph does one thing with half a block; whose weights it works on is up to the caller. So a step is: the images' rows
through the halves, keeping what `.save` graphs give; the loss, which brings the classifier's gradients; then backwards
through the halves that train, each of which is updated when its gradients are there. All tokens are kept here, and a
batch is passed whole; in parts, `total.NAME` is what the parts before gave as `gradient.NAME`.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime


def read(path):
    """The tensors of a safetensors file, all float32."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        begin, end = (start + offset for offset in entry["data_offsets"])
        found[name] = np.frombuffer(content[begin:end], np.float32).reshape(entry["shape"])
    return found


folder, batches = Path(sys.argv[1]), np.load(sys.argv[2])
manifest = json.loads((folder / "manifest.json").read_text())
plan, graphs, weights = manifest["plan"], manifest["graphs"], read(folder / "state.safetensors")
rate = float(sys.argv[3]) if len(sys.argv) > 3 else plan["recipe"]["learning_rate"]
trained = [block["index"] for block in plan["blocks"] if block["trainable"]]  # the last ones, as a rule
last = len(plan["blocks"]) - 1
lowest = min(trained, default=last + 1)
sessions, moments = {}, {}
if plan["embeddings_trainable"] or plan["lora"]:
    sys.exit("This program trains blocks and classifier; export a plan of last-N or of the default method.")


def run(name, values):
    """What a graph gives, by name; of `values` it takes what it needs."""
    path, inputs = folder / graphs[name]["file"], {tensor["name"] for tensor in graphs[name]["inputs"]}
    if name not in sessions:
        sessions[name] = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = sessions[name].run(None, {key: value for key, value in values.items() if key in inputs})
    return dict(zip((tensor["name"] for tensor in graphs[name]["outputs"]), found, strict=True))


def of_block(index):
    """A block's weights by their names within it."""
    at = f"blocks.{index}."
    return {name.removeprefix(at): value for name, value in weights.items() if name.startswith(at)}


def update(gradients, step, prefix=""):
    """Move the weights that these are the gradients of."""
    for key, gradient in gradients.items():
        name = prefix + key
        decay = plan["recipe"]["weight_decay"] if weights[name].ndim > 1 else 0
        scalars = {"learning_rate": rate, "step": step, "decay": decay}
        values = {tensor["name"]: np.zeros(gradient.size, np.float32) for tensor in graphs["update"]["inputs"]}
        values |= {"weights": weights[name].ravel(), "gradient": gradient.ravel(), **moments.get(name, {})}
        found = run("update", values | {key: np.array(value, np.float32) for key, value in scalars.items()})
        weights[name] = found.pop("new.weights").reshape(weights[name].shape)
        moments[name] = {key.removeprefix("new."): value for key, value in found.items()}


def backward(graph, index, half, dy, step):
    """Back through half a block, whose input and what it saved are in `half`; its weights are updated."""
    ours = of_block(index)
    totals = {f"total.{name}": np.zeros_like(value) for name, value in ours.items()}
    found = run(graph, {**ours, **totals, **half, "dy": dy})
    update({key[9:]: value for key, value in found.items() if key.startswith("gradient.")}, step, f"blocks.{index}.")
    return found.get("dx")


losses = []
for step, (images, labels) in enumerate(zip(batches["images"], batches["labels"], strict=True), 1):
    kernel = weights["patch_embed.proj.weight"]
    x = run("embed", {**weights, "images": images, "patch_embed.proj.weight": kernel.reshape(len(kernel), -1)})["y"]
    tokens, traces = np.array([len(x) // len(images)]), {}
    for index in range(last + 1):
        save, end = (".save" if index >= lowest else ""), (".last" if index == last else "")
        halves = []
        for graph in (f"attention{end}{save}", f"mlp{save}"):
            found = run(graph, {**of_block(index), "x": x, "tokens": tokens})
            halves.append({"x": x, "tokens": tokens, **found})
            x = found["y"]
        if save:
            traces[index] = halves
    smoothing = np.array(plan["recipe"]["label_smoothing"], np.float32)
    tokens = np.array([len(x) // len(images)])
    found = run("loss", {**weights, "x": x, "labels": labels, "tokens": tokens, "label_smoothing": smoothing})
    losses.append(float(found.pop("loss")))
    dy = found.pop("dx")
    update({key.removeprefix("gradient."): value for key, value in found.items()}, step)
    for index in range(last, lowest - 1, -1):
        attention, mlp = traces[index]
        dy = backward("mlp.gradients.weights", index, mlp, dy, step)
        end = (".last" if index == last else "") + ".gradients.weights" + (".lowest" if index == lowest else "")
        dy = backward(f"attention{end}", index, attention, dy, step)
print(json.dumps(losses))
