"""Faults planted in packages of the zoo, and honest variations of them: what `verify` says to each.

python -m tests.validate.mutations --precision float16 --cache DIR --json FILE
"""
