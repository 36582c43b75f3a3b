"""Layers whose projections are convolutions, over one pixel or a few, are pruned as others are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import moh_deploy
from moh_deploy.config.options import ExportOptions
from moh_deploy.frontend.export_package import export_package
from moh_deploy.package import OnnxPackage

pytestmark = pytest.mark.nightly


class ConvolutionMoH(nn.Module):
    """Attention over the pixels of an image, two heads of four for each.

    Args:
        kernel: Of the convolution of its own that each channel of keys and values goes through.
    """

    def __init__(self, width: int = 16, heads: int = 4, kernel: int = 1) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Conv2d(width, width, 1)
        self.pair = nn.Conv2d(width, 2 * width, 1, bias=False)
        self.around = nn.Conv2d(2 * width, 2 * width, kernel, padding=kernel // 2, groups=2 * width)
        self.router = nn.Linear(width, heads, bias=False)
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, image: Tensor) -> Tensor:
        batch, width, rows, columns = image.shape
        split = (batch, self.heads, width // self.heads, rows * columns)
        key, value = self.around(self.pair(image)).chunk(2, dim=1)
        q, k, v = (one.reshape(split).mT for one in (self.query(image), key, value))
        logits = self.router(image.flatten(2).mT)
        chosen = torch.zeros_like(logits).scatter(-1, logits.topk(2, dim=-1).indices, 1.0)
        gates = logits.softmax(-1) * chosen  # [B, S, H]
        heads = nn.functional.scaled_dot_product_attention(q, k, v) * gates.mT.unsqueeze(-1)
        return self.out(heads.mT.reshape(batch, width, rows, columns))


@pytest.mark.parametrize("kernel", [1, 3])
def test_channels_of_heads_that_go_are_cut(kernel: int, tmp_path: Path):
    torch.manual_seed(0)
    model = ConvolutionMoH(kernel=kernel).eval()
    spec = "image:[batch=2,16,5,7]:float32"
    export_package(ExportOptions(model, tmp_path / "package", input_specs=(spec,)))
    (layer,) = OnnxPackage.open(tmp_path / "package").manifest.layers
    assert layer.replaced, layer.reason
    report = moh_deploy.prune(tmp_path / "package", tmp_path / "pruned", keep=2)
    assert report.parity.equal
    assert report.layers[0].fixed.is_cut
    # Half of all channels of the four convolutions, and the router.
    whole = sum(one.numel() for one in model.parameters())
    out = model.out.bias
    assert out is not None
    left = (whole - model.router.weight.numel() - out.numel()) / 2 + out.numel()
    assert report.after.parameters == pytest.approx(left, abs=4)
    moh_deploy.verify(tmp_path / "pruned").raise_if_unequal()
    assert np.all(np.array(report.layers[0].fixed.gates) > 0)
