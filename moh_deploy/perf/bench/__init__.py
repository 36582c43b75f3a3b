"""Packages and their baselines, taking turns, and what is reported of them."""
