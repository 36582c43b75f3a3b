"""Accuracy parity: a task's metric on both sides, the difference, and whether it may be."""
