from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from moh_deploy.frontend.load.model import ModelInput
from moh_deploy.frontend.normalize import normalize
from tests.frontend.traced import nodes, plain_trace, traced
from tests.nightly import nightly, sampled

IMAGE = torch.randn(2, 3, 7, 9, generator=torch.Generator().manual_seed(0))

WINDOWS = {
    "one": {"kernel_size": 1},
    "three_padded": {"kernel_size": 3, "padding": 1},
    "unlike_sides": {"kernel_size": (2, 3), "padding": (0, 1)},
    "stride": {"kernel_size": 3, "stride": 2},
    "unlike_strides": {"kernel_size": 2, "stride": (3, 1), "padding": (1, 0)},
    "dilation": {"kernel_size": 3, "dilation": 2, "padding": 2},
    "dilation_and_stride": {"kernel_size": (3, 2), "dilation": (1, 3), "stride": (2, 2)},
    "patches": {"kernel_size": (7, 3), "stride": (7, 3)},
}


@sampled(4)
@pytest.mark.parametrize("name", WINDOWS)
def test_windows_are_slices_of_the_padded_image(name: str):
    program = normalize(plain_trace(lambda x: F.unfold(x, **WINDOWS[name]), IMAGE))
    assert nodes(program, "im2col") == []
    assert torch.equal(program.module()(IMAGE), F.unfold(IMAGE, **WINDOWS[name]))


@nightly
def test_windows_of_images_of_any_size():
    class Unfold(torch.nn.Module):
        def forward(self, x):
            return F.unfold(x, 3, padding=1, stride=2)

    program = traced(Unfold(), [ModelInput("x", IMAGE, {0: "batch", 2: "height", 3: "width"})])
    assert nodes(program, "im2col") == []
    for shape in ((1, 3, 4, 5), (3, 3, 10, 8)):
        image = torch.randn(shape)
        assert torch.equal(program.module()(image), F.unfold(image, 3, padding=1, stride=2))


def test_single_image_keeps_its_operator():
    program = normalize(plain_trace(lambda x: F.unfold(x, 3), IMAGE[0]))
    assert len(nodes(program, "im2col")) == 1
    assert torch.equal(program.module()(IMAGE[0]), F.unfold(IMAGE[0], 3))
