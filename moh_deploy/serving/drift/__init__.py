"""Detect drift: compare live routing with that of good traffic."""
