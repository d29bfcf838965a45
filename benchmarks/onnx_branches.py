"""A block that rests in a step: a graph of its own, or an `If` in one graph for both?

    python benchmarks/onnx_branches.py

ALaST draws, in each step, which blocks update their weights; the others only pass the gradient on. The ONNX engine has
a graph for each case (`edgetune.train.onnx.graphs`). Here the same backward pass of a ViT-Ti's MLP is also put into one
graph, whose `If` either sums up weight gradients or leaves them as they were, and both are run in turns, trained and
resting, on the same numbers. One line goes to `results/onnx_branches.jsonl`, and a table to the terminal.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
import onnx
from machine import append
from onnx import TensorProto, helper
from turns import ratios

from edgetune.model.registry import find_spec
from edgetune.train.onnx.drawing import Drawing
from edgetune.train.onnx.graphs import mlp_gradients
from edgetune.train.onnx.runtime import Runtime

ROUNDS, WARM_UP, TOKENS = 400, 20, 99  # half of a ViT-Ti's tokens at 224 px
CASES = ("weights", "nothing")


def joined(graphs: dict[str, onnx.ModelProto]) -> onnx.ModelProto:
    """One graph with the input `trains`: the branch of either graph, which reads what lies outside of it."""
    branches = {}
    results = list(graphs["weights"].graph.output)
    for name, model in graphs.items():
        branch = onnx.GraphProto()
        branch.CopyFrom(model.graph)
        del branch.input[:], branch.output[:]
        made = {value for node in branch.node for value in node.output}
        for result in results:
            if result.name not in made:  # a resting block's gradient so far stays as it is
                total = result.name.replace("gradient.", "total.")
                branch.node.append(helper.make_node("Identity", [total], [f"{name}.{result.name}"]))
            for node in branch.node:
                node.output[:] = [f"{name}.{value}" if value == result.name else value for value in node.output]
                node.input[:] = [f"{name}.{value}" if value == result.name else value for value in node.input]
            kind = result.type.tensor_type
            branch.output.append(helper.make_tensor_value_info(f"{name}.{result.name}", kind.elem_type, None))
        branch.name = name
        branches[name] = branch
    names = [item.name for item in results]
    node = helper.make_node("If", ["trains"], names, then_branch=branches["weights"], else_branch=branches["nothing"])
    inputs = [helper.make_tensor_value_info("trains", TensorProto.BOOL, []), *graphs["weights"].graph.input]
    graph = helper.make_graph([node], "either", inputs, results)
    model = graphs["weights"]
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def arrays(model: onnx.ModelProto, rng: np.random.Generator) -> tuple[dict[str, Any], dict[str, Any]]:
    """Inputs and outputs; a gradient has the memory of its total, as in the engine."""

    def empty(value: Any) -> Any:
        sides = [side.dim_value or TOKENS for side in value.type.tensor_type.shape.dim]
        return rng.standard_normal(sides, np.float32)

    inputs = {item.name: empty(item) for item in model.graph.input if item.name != "tokens"}
    inputs["tokens"] = np.array([TOKENS], np.int64)
    outputs = {item.name: empty(item) for item in model.graph.output}
    for name in outputs:
        if name.startswith("gradient."):
            outputs[name] = inputs[name.replace("gradient.", "total.")]
    return inputs, outputs


def main() -> None:
    """Measure, record and print."""
    spec = find_spec("vit_tiny_patch16_224").at(224, 10)
    drawings: dict[str, Drawing] = {case: mlp_gradients(spec, needs=case) for case in CASES}
    graphs = {case: drawing.model(case) for case, drawing in drawings.items()}
    files = {**graphs, "either": joined(graphs)}
    runtime = Runtime(lambda name: files[name].SerializeToString(), threads=2)
    inputs, outputs = arrays(graphs["weights"], np.random.default_rng(0))
    trains = {case: np.array(case == "weights") for case in CASES}
    took: dict[str, list[float]] = {f"{way}, {case}": [] for way in ("apart", "If") for case in CASES}
    for number in range(WARM_UP + ROUNDS):
        for way in ("apart", "If") if number % 2 else ("If", "apart"):
            for case in CASES:
                started = time.perf_counter()
                runtime.run("either" if way == "If" else case, inputs | {"trains": trains[case]}, outputs)
                seconds = time.perf_counter() - started
                if number >= WARM_UP:
                    took[f"{way}, {case}"].append(seconds)
    append("onnx_branches", {"model": spec.name, "tokens": TOKENS, "rounds": ROUNDS, "took_s": took})
    print("| backward pass of an MLP | graphs of their own, ms | `If`, ms | `If` by the former [95 %] |")
    print("|---|---:|---:|---:|")
    for case, label in (("weights", "that trains"), ("nothing", "that rests")):
        apart, branch = (took[f"{way}, {case}"] for way in ("apart", "If"))
        median, low, high = ratios(branch, of=apart)
        print(
            f"| {label} | {1e3 * statistics.median(apart):.2f} | {1e3 * statistics.median(branch):.2f} |"
            f" {median:.2f} [{low:.2f}, {high:.2f}] |"
        )


if __name__ == "__main__":
    main()
