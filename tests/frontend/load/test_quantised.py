from __future__ import annotations

import pytest
import torch
from torch import nn

from moh_deploy.errors import CheckpointError
from moh_deploy.frontend.load.checkpoint import in_eval_mode


@pytest.mark.filterwarnings("ignore:.*quanti")
def test_quantised_model_is_refused_with_what_to_export_instead() -> None:
    model = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8))
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    with pytest.raises(CheckpointError, match=r"quantised: '1' is or holds a torch\.ao") as caught:
        in_eval_mode(quantised)
    assert "floating point" in str(caught.value.hint)


def test_model_in_floating_point_is_none() -> None:
    model = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8))
    assert in_eval_mode(model) is model
