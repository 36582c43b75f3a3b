"""Serve a package: answer in batches, and count the routing.

`ServedModel` is the core, which knows no protocol: `moh-deploy serve` and Triton's Python backend
hand it batches.
"""
