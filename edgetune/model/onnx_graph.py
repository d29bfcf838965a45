"""An ONNX graph in the making, node by node.

Graphs are written out rather than traced: they then depend on no exporter's version, are the same small ones
everywhere, and need neither tracing memory nor onnxscript on the device. Operators are those of opset 17, the first
with LayerNormalization, which every runtime of the last years takes.

ONNX operators: https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from edgetune.model.onnx_version import IR_VERSION as IR_VERSION
from edgetune.model.onnx_version import OPSET as OPSET


class Graph:
    """Nodes and constants in the making. Every call appends one operator and returns the name of its output."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def constant(self, name: str, value: NDArray[Any]) -> str:
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.asarray(value, order="C"), name)
        return name

    def shape(self, *sides: int) -> str:
        """A constant shape; in Reshape 0 keeps a side."""
        return self.constant("shape_" + "_".join(map(str, sides)), np.array(sides, np.int64))

    def add(self, operator: str, inputs: Sequence[str], name: str, outputs: int = 1, **attributes: Any) -> Any:
        names = [name] if outputs == 1 else [f"{name}.{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(operator, inputs, names, name, **attributes))
        return names[0] if outputs == 1 else names
