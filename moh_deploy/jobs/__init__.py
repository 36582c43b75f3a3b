"""The commands, as functions: each reads a package and returns a report."""
