from __future__ import annotations

import math
from types import SimpleNamespace

import torch
from torch.fx import Graph

from moh_deploy.frontend.recognize.routers.router import Logits
from moh_deploy.frontend.recognize.routers.weighing import Weighing


def test_no_epsilon_is_told_from_sums_that_differ_by_their_rounding():
    """The inverses of both sums are the same number."""
    weights = Logits(Graph().placeholder("weights"), 1)
    small = 0.91
    large = math.nextafter(small, 1)
    assert 1 / small == 1 / large
    kept = torch.tensor([[small], [large]], dtype=torch.float64)
    gates = torch.tensor([[0.3], [0.7]], dtype=torch.float64)
    weighing = Weighing(SimpleNamespace(tolerance=1e-9), None, [], gates[:, :0], gates)
    assert weighing._finish(weights, kept, gates) is None
