"""The edge cases that `moh-deploy probe` runs a package on.

Routing states are put where routers read their logits; input states are inputs of the model. The
two know nothing of each other but `CaseResult`.
"""
