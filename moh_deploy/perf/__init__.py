"""Measure and predict how fast packages run: timing, a cost model, `tune` and `bench`."""
