from __future__ import annotations

import math

import torch
from torch.fx import Graph

from moh_deploy.frontend.recognize.routers.router import Logits
from moh_deploy.frontend.recognize.routers.weighing import _finish


def test_no_epsilon_is_told_from_sums_that_differ_by_their_rounding():
    """The inverses of both sums are the same number."""
    weights = Logits(Graph().placeholder("weights"), 1)
    small = 0.91
    large = math.nextafter(small, 1)
    assert 1 / small == 1 / large
    kept = torch.tensor([[small], [large]], dtype=torch.float64)
    gates = torch.tensor([[0.3], [0.7]], dtype=torch.float64)
    assert _finish(weights, kept, gates, 1e-9) is None
