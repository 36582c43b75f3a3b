"""Runtimes that run a package. Each imports its runtime in functions: a missing one harms none."""
