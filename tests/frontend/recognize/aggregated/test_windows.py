import torch

from moh_deploy.frontend.fx.axes import Axis, resolve, size_of
from moh_deploy.frontend.recognize.aggregated.windows import read_layout

ROW, HEAD, CHANNEL = (Axis(size_of(size)) for size in (5, 3, 4))
AXES = (ROW, HEAD, CHANNEL)


def read(index: torch.Tensor, *extents: int):
    sizes = [size_of(extent) for extent in extents]
    return read_layout(index, AXES, sizes, torch.Size(extents).numel())


def test_layout_of_a_whole_tensor():
    index = torch.arange(60).view(3, 4, 5).permute(2, 0, 1)
    layout, fixed = read(index, 12, 5)
    assert resolve(layout) == ((HEAD, CHANNEL), (ROW,))
    assert fixed == {}


def test_part_of_a_tensor_has_an_axis_of_which_one_entry_is_taken():
    index = torch.arange(120).view(5, 2, 3, 4)[:, 1]
    layout, fixed = read(index, 5, 24)
    ((axis, entry),) = fixed.items()
    assert (axis.size, entry) == (2, 1)
    assert resolve(layout) == ((ROW,), (axis, HEAD, CHANNEL))


def test_axis_that_the_tensor_does_not_vary_along_is_not_in_its_layout():
    index = torch.arange(20).view(5, 1, 4).expand(5, 3, 4)
    layout, _ = read(index, 5, 4)
    assert resolve(layout) == ((ROW,), (CHANNEL,))


def test_unequal_steps_are_no_layout():
    index = torch.arange(60).view(5, 3, 4).clone()
    index[2, 1, 3] += 1
    assert read(index, 5, 12) is None
    assert read(torch.arange(60).view(5, 3, 4).flip(0), 5, 12) is None
