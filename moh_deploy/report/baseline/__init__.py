"""Figures that were reached once, in a file: what is worse than they are fails."""
