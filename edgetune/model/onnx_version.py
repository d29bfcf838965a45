"""Which ONNX our graphs are written in: a module of its own, for who checks a graph without the onnx package.

`INTERFACE` counts what training graphs are asked for: it rises whenever a name, an input or an output of one changes
(`tests/export/test_training.py` knows), since an export or a run in progress may be of another edgetune.
"""

OPSET, IR_VERSION = 17, 8
OLDEST_ONNXRUNTIME = (1, 19)  # that the engine is tried with
INTERFACE = 1


def version_of(text: str) -> tuple[int, ...]:
    """Its first two numbers."""
    return tuple(int(part) for part in text.split(".")[:2] if part.isdigit())
