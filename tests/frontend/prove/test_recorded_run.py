from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from moh_deploy.frontend.load.model import ModelInput
from moh_deploy.frontend.prove.original import DoesNotRun, OriginalRun, try_to_record
from tests.frontend.traced import traced


class Shared(nn.Module):
    """Shares 1 among the other tokens."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.shape[0]
        return x * (1.0 / (tokens - 1) if tokens > 1 else 1.0)


def test_program_that_cannot_compute_with_a_size_does_not_run_there():
    item = ModelInput("x", torch.ones(4, 2), {0: "tokens"})
    program = traced(Shared(), [item])
    alone = replace(item, value=torch.ones(1, 2))
    found = try_to_record(program, (), (), OriginalRun((alone,), [alone.value]), ["y"])
    assert isinstance(found, DoesNotRun)
    assert "division by zero" in found.why
