"""What the graphs are: plain ONNX of one opset, and safe to give an output the memory of an input."""

from __future__ import annotations

import onnx
import pytest

from edgetune.model.onnx_version import OPSET
from edgetune.train.onnx.edges import evaluation
from edgetune.train.onnx.graphs import builders
from tests.train.onnx.conftest import SPECS

# Outputs that the engine gives an input's memory.
SHARED = {"gradient.": "total.", "new.": ""}


def graphs(spec, optimizer="adamw", scale=None):
    return {name: build().model(name) for name, build in builders(spec, optimizer, scale).items()}


@pytest.mark.parametrize("model", SPECS)
@pytest.mark.parametrize("scale", [None, 2.0])
def test_plain_onnx(model, scale):
    models = graphs(SPECS[model], scale=scale) | {"evaluate": evaluation(SPECS[model]).model("evaluate")}
    for name, built in models.items():
        onnx.checker.check_model(built, full_check=True)
        assert [(item.domain, item.version) for item in built.opset_import] == [("", OPSET)], name
        assert {node.domain for node in built.graph.node} == {""}, name


def readers_after_the_write(graph, source, target):
    """Operators that read `source` and are not needed for `target`: they could come when it has been written over."""
    makers = {output: node for node in graph.node for output in node.output}
    needed, waiting = set(), [target]
    while waiting:
        node = makers.get(waiting.pop())
        if node is not None and node.name not in needed:
            needed.add(node.name)
            waiting += list(node.input)
    return [node.name for node in graph.node if source in node.input and node.name not in needed]


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd", "sgd-plain"])
@pytest.mark.parametrize("model", SPECS)
@pytest.mark.parametrize("scale", [None, 1.0])
def test_an_output_may_lie_where_its_input_does(model, optimizer, scale):
    seen = set()
    for name, built in graphs(SPECS[model], optimizer, scale).items():
        inputs = {value.name for value in built.graph.input}
        for output in built.graph.output:
            for prefix, other in SHARED.items():
                source = other + output.name.removeprefix(prefix)
                if output.name.startswith(prefix) and source in inputs:
                    assert readers_after_the_write(built.graph, source, output.name) == []
                    seen.add(name)
    trains = "weights" if scale is None else "factors"
    expected = {"update", "embed.gradients", "mlp.gradients.weights"}
    expected |= {f"attention{place}.gradients.{trains}{ends}" for place in ("", ".last") for ends in ("", ".lowest")}
    assert seen == expected


def test_the_check_sees_a_reader_that_comes_late():
    nodes = [
        onnx.helper.make_node("Neg", ["w"], ["a"], "late"),
        onnx.helper.make_node("Abs", ["w"], ["new.w"], "write"),
    ]
    graph = onnx.helper.make_graph(nodes, "g", [], [])
    assert readers_after_the_write(graph, "w", "new.w") == ["late"]
