"""Every edit of an ONNX graph, one pass a file; `sequences` has the order in which they run.

A pass edits the graph that it is given. What it returns is true if and only if it changed it.

What only reads a graph is here too: where routers read their logits, which nodes a layer has, what
its values are computed from.
"""
