"""From a model in PyTorch to ONNX: everything that imports torch."""
