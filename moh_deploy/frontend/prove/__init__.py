"""Run the original: record it, measure its rounding, compare it with what was made of it."""
