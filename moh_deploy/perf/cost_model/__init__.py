"""Predict how long a layer takes densely, sparsely, or sparsely with its projections."""
