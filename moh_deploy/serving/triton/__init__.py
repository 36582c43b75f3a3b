"""A package as a directory that Triton Inference Server loads, and what is needed around it."""
