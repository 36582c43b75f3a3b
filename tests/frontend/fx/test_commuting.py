from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moh_deploy.frontend.fx.axes import flat, fresh_layout
from moh_deploy.frontend.fx.commuting import Reading, read_commuting
from moh_deploy.frontend.fx.graph import op, shape
from tests.frontend.traced import plain_trace
from tests.nightly import sampled

X = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))


def reading(model: Callable[[Tensor], Tensor]) -> Reading | None:
    """How the operator that computes the model's output reads its sources."""
    program = plain_trace(model, X)
    node = program.graph.output_node().args[0][0]
    return read_commuting(node, fresh_layout(shape(node)))


ELEMENTWISE = {
    "product": lambda x: x * x[:, :1],
    "where": lambda x: torch.where(x > 0, x, 0.0),
    "cast": lambda x: x.double(),
    "clamped": lambda x: x.clamp(min=0),
}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise_operator_keeps_nothing_in_place(name: str):
    found = reading(ELEMENTWISE[name])
    assert (found.along, found.suffix, found.result_suffix) == ((), None, 0)


# Dimensions that stay: of the sources, of the result.
ALONG = {
    "softmax": (lambda x: x.softmax(3), 1, 1),
    "softmax_of_heads": (lambda x: x.softmax(1), 3, 3),
    "summed_up": (lambda x: x.cumsum(-2), 2, 2),
    "sum": (lambda x: x.sum(-1), 1, 0),
    "sum_kept": (lambda x: x.sum(-1, keepdim=True), 1, 1),
    "sum_of_two": (lambda x: x.sum((1, 3)), 3, 1),
    "norm": (lambda x: torch.linalg.vector_norm(x, dim=-1), 1, 0),
    "slice": (lambda x: x[..., 1:], 1, 1),
    "entry": (lambda x: x[..., 1], 1, 0),
    "entry_of_head": (lambda x: x[:, 1], 3, 2),
    "split": (lambda x: x.split([1, 3], -1)[0], 1, 1),
    "unbound": (lambda x: x.unbind(-1)[1], 1, 0),
    "concatenation": (lambda x: torch.cat((x, x[..., :1]), -1), 1, 1),
    "stack": (lambda x: torch.stack((x, x), -1), 0, 1),
    "stack_before": (lambda x: torch.stack((x, x), -2), 1, 2),
    "layer_norm": (lambda x: F.layer_norm(x, (5, 4)), 2, 2),
    "linear": (lambda x: F.linear(x, torch.ones(7, 4)), 1, 1),
}


@sampled(4)
@pytest.mark.parametrize("name", ALONG)
def test_operator_along_dimensions_keeps_them_in_place(name: str):
    model, suffix, result_suffix = ALONG[name]
    found = reading(model)
    assert (found.suffix, found.result_suffix) == (suffix, result_suffix)
    assert max(found.along) < 0


def test_sources_share_the_axes_in_front_of_what_stays():
    program = plain_trace(lambda x: torch.cat((x, x[..., :1]), -1), X)
    node = program.graph.output_node().args[0][0]
    layout = fresh_layout(shape(node))
    found = read_commuting(node, layout)
    first, second = found.sources
    assert flat(first.layout)[:3] == flat(second.layout)[:3] == flat(layout)[:3]
    assert [source.layout[3][0].size for source in found.sources[:1]] == [4]
    assert second.layout[3] == ()  # of size 1
    assert op(first.node) == ""


@pytest.mark.parametrize(
    "model",
    [
        lambda x: x @ x.mT,
        lambda x: x.sum(),
        lambda x: x.flatten(1),
        lambda x: x[..., [1, 0]],
        lambda x: F.dropout(x, 0.5, training=True),
        lambda x: torch.bernoulli(x.sigmoid()),
    ],
)
def test_other_operators_do_not_commute(model: Callable[[Tensor], Tensor]):
    assert reading(model) is None
