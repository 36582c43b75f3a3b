from __future__ import annotations

import torch

from moh_deploy.frontend.normalize import normalize
from tests.frontend.traced import nodes, plain_trace


def test_what_nobody_reads_is_gone():
    program = normalize(plain_trace(lambda x: (x.exp(), x + 1)[1], torch.ones(2)))
    assert nodes(program, "exp") == []
