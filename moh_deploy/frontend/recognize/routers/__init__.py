"""Which router computes a layer's gates.

`selection` finds the top-k of any router. `forms` proposes a MoHRouter for the published forms and
proves the proposal by running both on the same logits: it does not matter how a router is written,
only what it computes.
"""
