"""Find where an error enters a model, and which nodes have to be in float32 for it to be small."""
