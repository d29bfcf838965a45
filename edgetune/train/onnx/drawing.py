"""One ONNX graph in the making: inputs, operators, and results under names of their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from edgetune.model.onnx_graph import IR_VERSION, OPSET, Graph
from edgetune.model.onnx_ops import OnnxOps, Value


class Drawing:
    """One graph in the making: its inputs, operators and results."""

    def __init__(self) -> None:
        self.graph = Graph()
        self.ops = OnnxOps(self.graph, "block.")  # so that its names and those given here never meet
        self._inputs: dict[str, tuple[int, list[Any]]] = {}
        self._results: dict[str, tuple[str, int, list[Any]]] = {}

    def rows(self, name: str, width: int, tokens: str | int = "tokens") -> Value:
        """An input with tokens, (B · N, C)."""
        if isinstance(tokens, str):
            self.input(tokens, [1], TensorProto.INT64)
        self.input(name, [f"rows_of_{tokens}", width])
        return Value(name, (width,), tokens)

    def weight(self, name: str, shape: tuple[int, ...]) -> Value:
        """An input without tokens."""
        self.input(name, list(shape))
        return Value(name, shape)

    def input(self, name: str, sides: list[Any], kind: int = TensorProto.FLOAT) -> str:
        self._inputs[name] = (kind, sides)
        return name

    def add(self, operator: str, inputs: Iterable[str], label: str, **attributes: Any) -> str:
        """An operator of this graph alone; the block's go through `ops`."""
        return str(self.graph.add(operator, list(inputs), label, **attributes))

    def number(self, name: str, value: float, kind: type[np.floating[Any]] = np.float32) -> str:
        return self.graph.constant(name, np.array(value, kind))

    def result(self, name: str, value: Value | str, sides: list[Any], kind: int = TensorProto.FLOAT) -> None:
        self._results[name] = (value if isinstance(value, str) else value.name, kind, sides)

    def gradients(self, found: Mapping[str, Value]) -> None:
        """The sums of gradients as results."""
        for name, value in found.items():
            self.result(f"gradient.{name}", value, list(value.shape))

    def model(self, name: str) -> onnx.ModelProto:
        """The whole graph, with the inputs that it turned out to need."""
        called = {value: result for result, (value, _, _) in self._results.items()}
        for node in self.graph.nodes:
            for names in (node.input, node.output):
                names[:] = [called.get(value, value) for value in names]
        read = {value for node in self.graph.nodes for value in node.input}
        proto = helper.make_graph(
            self.graph.nodes,
            name,
            [
                helper.make_tensor_value_info(value, kind, sides)
                for value, (kind, sides) in self._inputs.items()
                if value in read
            ],
            [helper.make_tensor_value_info(result, kind, sides) for result, (_, kind, sides) in self._results.items()],
            list(self.graph.constants.values()),
        )
        opset = [helper.make_opsetid("", OPSET)]
        return helper.make_model(proto, producer_name="edgetune", opset_imports=opset, ir_version=IR_VERSION)
