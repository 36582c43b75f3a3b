"""Turn a float32 graph into one whose types say where float16 or bfloat16 is used.

policy   which operators stay in float32, and why: the table to argue about
casts    types and Casts, once it is decided
"""
