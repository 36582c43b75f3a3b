"""Measure on this machine how each layer is best run."""
