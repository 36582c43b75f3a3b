"""A plan to fill in: a proof of concept, whose margins are written down before it runs."""

from __future__ import annotations

NEW_PLAN = """\
# The plan of a comparison: fill it in before you have looked at any data, and run
#     moh-deploy compare --plan THIS_FILE --html decision.html
# Its sha256 is in every report. Paths are relative to this file. docs/compare.md has all keys.

goal: Serve at lower latency than the dense model, at the same quality.

# What would be served otherwise. All other arms are compared with it.
reference: dense

arms:
  dense:
    path: build/dense        # a package, an engine or an ONNX file
    dense: true              # it has no routers and computes every head
  moh:
    path: build/moh
  all-open:                  # made from the package: what routing itself saves
    made: {all_heads_open: true}
    of: moh
  # fewer-heads:             # each token chooses 4 routed heads
  #   made: {top_k: 4}
  #   of: moh
  # pruned:                  # the same 12 heads for every token, the others cut away
  #   made: {prune: {keep: 12, by: load}}
  #   of: moh
  # int8:
  #   made: {precision: int8}
  #   of: moh
  # original:                # in PyTorch, loaded as by `export`; code needs --trust-code
  #   checkpoint: {file: model.pt, config: export.yaml}
  # served:                  # a server that speaks the v2 protocol
  #   url: http://127.0.0.1:8000
  #   model: moh

# Labelled samples that no arm was trained on, or chosen by.
inputs: [held-out.npz]
labels: labels.npy

# How much an arm may lose against the reference and still win, in units of the metric.
quality:
  metric: top-1
  may_lose: 0.005            # half a point

# How much time it has to save at least, as a share of the reference's, at each of the sizes.
latency:
  quantile: 0.5
  at_least: 0.10
sizes:
- {batch: 1}
- {batch: 8}

# When to stop. A look more than planned makes a wrong win likelier than the confidence says:
# with looks: 3 the second one is `--earlier first.json`, with more `seconds` here, or with more
# samples in the same files.
confidence: 0.95
looks: 1
seconds: 20
"""
