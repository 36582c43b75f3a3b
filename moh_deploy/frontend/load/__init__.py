"""From a file to a model: pickles, state dicts, safetensors, exported programs, ONNX files."""
