"""What the program shows of a difference is said with what to do about it."""

import re

import numpy as np
import torch
from torch import Tensor, nn

from moh_deploy.frontend.load.model import ModelInput
from moh_deploy.frontend.normalize import normalize
from moh_deploy.frontend.prove.original import OriginalRun
from moh_deploy.frontend.prove.record import record
from moh_deploy.frontend.prove.remedy import remedy
from moh_deploy.frontend.prove.size_runs import SizeRuns
from moh_deploy.frontend.prove.valid_elements import ValidElements
from moh_deploy.validate.reference.valid_tokens import ValidTokens
from tests.frontend.traced import plain_trace, traced


def under_autocast(x: Tensor, weight: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = nn.functional.linear(x, weight)
    return scores.float().softmax(-1)


def test_an_operator_under_autocast_is_told():
    program = normalize(plain_trace(under_autocast, torch.ones(2, 3), torch.ones(4, 3)))
    no_runs = SizeRuns([], [], {}, {})
    said = remedy(program, torch.float32, no_runs)
    assert said is not None
    assert said.startswith("linear computes in bfloat16, the model in float32: runtimes round")
    assert remedy(program, torch.bfloat16, no_runs) is None


class BestHalf(nn.Module):
    """Keeps the half of the tokens with the largest, or smallest, numbers, and the best channel."""

    def __init__(self, *, largest: bool) -> None:
        super().__init__()
        self.largest = largest

    def forward(self, x: Tensor) -> Tensor:
        kept = x.topk(x.shape[1] // 2, dim=1, largest=self.largest).values
        return kept * kept.topk(1, dim=-1).values


def test_tokens_that_tie_for_the_last_place_are_told():
    tied = [[5.0, 3.0, 1.0, 3.0]]
    cases = (
        (True, tied, None, True),
        (False, tied, None, True),
        (True, [[3.0, 3.0, 1.0]], None, True),
        (False, [[3.0, 3.0, 1.0]], None, False),
        (True, [[5.0, 3.0, 1.0, 3.0 + 1e-6]], None, True),
        (True, [[5.0, 3.0, 1.0, 3.1]], None, False),
        (True, [[5.0, 5.0, 1.0, 3.0]], None, False),  # the best two are equal, and both are kept
        (True, tied, [[True, False, True, False]], False),  # padding ties with padding
        (True, tied, [[True, True, True, False]], True),
    )
    for largest, numbers, mask, is_told in cases:
        x = torch.tensor(numbers)[..., None].repeat(1, 1, 2)  # both channels are alike
        items = (ModelInput("x", x, {1: "n"}),)
        model = BestHalf(largest=largest)
        program = traced(model, items)
        valid = ValidElements.of(program, items, ["y"])
        if mask is not None:
            valid = valid.where(ValidTokens("mask", np.array(mask), (1, "n")))
        run, recording = OriginalRun(items, [model(x)]), record(program, [], [x], valid=valid)
        said = remedy(program, torch.float32, SizeRuns([run], [recording], {}, {}))
        assert (said is not None) == is_told, (largest, numbers, mask)
        if said is not None:
            assert re.match(r"topk \(prove/test_remedy\.py:\d+\) .* tie .* at n=\d: ", said), said
