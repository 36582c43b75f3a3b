"""Language models for onnxruntime-genai: a directory that `og.Model` opens, and its proof."""
