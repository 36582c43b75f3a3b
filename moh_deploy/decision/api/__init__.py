"""The public functions of `compare` and `cost`."""
