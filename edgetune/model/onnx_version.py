"""Which ONNX our graphs are written in: a module of its own, for who checks a graph without the onnx package."""

OPSET, IR_VERSION = 17, 8
OLDEST_ONNXRUNTIME = (1, 19)  # that the engine is tried with
