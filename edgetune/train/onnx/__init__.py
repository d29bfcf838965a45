"""Training without torch: half a block at a time as small ONNX graphs, run by an ordinary onnxruntime."""
