"""Packages and models that are made from a package: lowered, pruned, in other forms."""
