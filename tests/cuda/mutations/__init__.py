"""Bugs that are planted in the CUDA kernels, to see that the tests notice each of them.

    python -m tests.cuda.mutations [REGEX]

tries all whose name has the regular expression, and says of each what noticed it.
"""
