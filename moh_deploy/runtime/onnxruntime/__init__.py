"""ONNX Runtime on the CPU: sessions, the kernel library, variants of a model."""
