"""The public functions, one a file: each reads a package or a model and returns a report."""
