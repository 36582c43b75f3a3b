"""Decide which of several ways to serve a model is worth it, by a plan made before the data."""
