"""What needs a GPU: `make test-gpu`, or `python -m tests.gpu`. nvcc, torch and numpy suffice."""
