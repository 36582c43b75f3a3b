"""What serves a package: answers in batches, and says what its routers do meanwhile.

`ServedModel` is the core, which knows no protocol: `moh-deploy serve` and Triton's Python backend
hand it batches.
"""
