from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moh_deploy.frontend.fx.builder import NotCoveredError
from moh_deploy.frontend.fx.elements import Elements, elements_of
from moh_deploy.frontend.fx.known_values import KnownValues
from moh_deploy.frontend.normalize import normalize
from tests.frontend.traced import plain_trace
from tests.nightly import sampled

X = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
ORDER = torch.tensor([3, 0, 1])


def elements(function: Callable[[Tensor], Tensor], x: Tensor = X) -> Elements | None:
    """Where the elements of a function's result come from."""
    program = normalize(plain_trace(lambda t: function(t.exp()) + 0, x))
    (result,) = (node for node in program.graph.nodes if node.target is torch.ops.aten.add.Tensor)
    return elements_of(result.args[0], KnownValues(program))


@sampled(4)
@pytest.mark.parametrize(
    "move",
    [
        lambda t: t.permute(2, 0, 3, 1).flatten(1),
        lambda t: F.unfold(t, (3, 1), padding=(1, 0)),
        lambda t: F.pad(t, (1, 1, 2, 0)),
        lambda t: F.pad(t, (1, 1, 2, 0), mode="reflect"),
        lambda t: F.pad(t, (1, 1, 2, 0), mode="circular"),
        lambda t: t.unfold(2, 3, 1).unfold(3, 2, 2),
        lambda t: torch.cat([torch.zeros_like(t[:, :1]), t.flip(1)], 1).roll(2, 3),
        lambda t: t[:, :, ORDER],
        lambda t: t.index_select(2, ORDER),
        lambda t: t.gather(2, ORDER.view(1, 1, 3, 1).expand(2, 3, 3, 5)),
        lambda t: torch.stack(t.chunk(2, 2), -1)[..., 0],
        lambda t: t.repeat(1, 2, 1, 1).expand(3, -1, -1, -1, -1),
    ],
)
def test_elements_are_where_they_are_said_to_come_from(move: Callable[[Tensor], Tensor]):
    found = elements(move)
    assert str(found.source.target) == "aten.exp.default"
    source = X.exp()
    expected = torch.where(found.index < 0, 0.0, source.flatten()[found.index.clamp(min=0)])
    torch.testing.assert_close(move(source), expected, rtol=0, atol=0)


def test_padding_with_another_number_is_no_movement():
    found = elements(lambda t: F.pad(t, (1, 1), value=2.0))
    assert "pad" in str(found.source.target)


def test_elements_of_two_tensors_have_no_one_source():
    assert elements(lambda t: torch.cat([t, t.sin()])) is None


def test_too_many_elements_are_not_followed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("moh_deploy.frontend.fx.elements._MOST_ELEMENTS", 200)
    assert elements(lambda t: t.flip(0)) is not None
    with pytest.raises(NotCoveredError, match=r"have 240 elements.*smaller batch"):
        elements(lambda t: t.repeat(2, 1, 1, 1))


def test_a_cast_is_a_source_of_its_own():
    found = elements(lambda t: t.half().flip(0).float() * 1)
    assert "mul" in str(found.source.target)


def test_index_that_depends_on_the_input_is_no_known_movement():
    found = elements(lambda t: t[:, :, t.argmax(2)[0, 0]])
    assert "index" in str(found.source.target)
