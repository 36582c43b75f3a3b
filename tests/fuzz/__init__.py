"""Inputs that nobody meant to write, for every reader of a file that others can write.

`pytest tests/fuzz` tries a few, the same ones each time. `python -m tests.fuzz --minutes 30` goes
on with others: in processes of their own, with a limit of memory, and a watch on what hangs.
"""
