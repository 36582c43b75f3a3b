"""Comparing what a runtime computes with the reference."""
