"""The loss as a part of the graph, for runtimes that derive the backward pass themselves.

ONNX operators: https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgetune.export.graph import OUTPUT

LABELS, LOSS = "labels", "loss"


def add_loss(model: onnx.ModelProto, label_smoothing: float) -> None:
    """Put cross-entropy behind a graph of `build_graph`: `labels (batch) → loss`, the mean, as its first output.

    With smoothing ε it is (1 - ε) · cross-entropy - ε · mean of the log-probabilities, as `torch.nn.functional` has it.
    """
    hard = LOSS if not label_smoothing else "loss.hard"
    nodes = [helper.make_node("SoftmaxCrossEntropyLoss", [OUTPUT, LABELS], [hard], "loss.hard", reduction="mean")]
    if label_smoothing:
        shares = {"loss.hard_share": 1 - label_smoothing, "loss.even_share": -label_smoothing}
        for name, share in shares.items():
            model.graph.initializer.append(numpy_helper.from_array(np.array(share, np.float32), name))
        nodes += [
            helper.make_node("LogSoftmax", [OUTPUT], ["loss.logs"], "loss.logs", axis=-1),
            helper.make_node("ReduceMean", ["loss.logs"], ["loss.mean_log"], "loss.mean_log", keepdims=0),
            helper.make_node("Mul", [hard, "loss.hard_share"], ["loss.hard_part"], "loss.hard_part"),
            helper.make_node("Mul", ["loss.mean_log", "loss.even_share"], ["loss.even_part"], "loss.even_part"),
            helper.make_node("Add", ["loss.hard_part", "loss.even_part"], [LOSS], LOSS),
        ]
    model.graph.node.extend(nodes)
    model.graph.input.append(helper.make_tensor_value_info(LABELS, TensorProto.INT64, ["batch"]))
    model.graph.output.insert(0, helper.make_tensor_value_info(LOSS, TensorProto.FLOAT, []))
