"""A library for torch.fx graphs: axes, views, elements, constants, and a builder."""
