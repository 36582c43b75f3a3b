"""Functions under torch.vmap become operators on all heads."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moh_deploy.errors import ExportError
from moh_deploy.frontend.normalize import normalize
from tests.frontend.traced import plain_trace

X = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))
W = torch.randn(4, 6, 3, generator=torch.Generator().manual_seed(1))
G = torch.rand(2, 5, 4, generator=torch.Generator().manual_seed(2))
Model = Callable[[Tensor, Tensor, Tensor], Tensor]


def attention(x: Tensor, w: Tensor, g: Tensor) -> Tensor:
    def head(w: Tensor, gate: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x @ w, x @ w, x @ w) * gate.unsqueeze(-1)

    return torch.vmap(head, in_dims=(0, -1))(w, g).transpose(1, 3).flatten(2)


def written_out(x: Tensor, w: Tensor, g: Tensor) -> Tensor:
    def head(w: Tensor, gate: Tensor) -> Tensor:
        q, k = F.linear(x, w.T), torch.einsum("bsc,cd->bsd", x, w)
        scores = (q @ k.transpose(1, 2)).masked_fill(torch.ones(5, 5).triu(1).bool(), -1e9)
        return (scores.softmax(-1) @ q * gate[..., None]) @ w.mT

    return torch.vmap(head, in_dims=(0, 2))(w, g).sum(0)


def a_result_of_no_head(x: Tensor, w: Tensor, g: Tensor) -> Tensor:
    heads, same = torch.vmap(lambda w: (x @ w, x.exp()))(w)
    return heads.sum(-1) + same.sum(-1)


@pytest.mark.parametrize("model", [attention, written_out, a_result_of_no_head])
def test_vmap_is_one_operator_for_all(model: Model):
    program = normalize(plain_trace(model, X, W, G))
    kinds = {getattr(node.target, "namespace", "aten") for node in program.graph.nodes}
    assert kinds <= {"aten"}
    assert all("batch_dim" not in node.name for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(X, W, G), model(X, W, G))


def vmap_of_vmap(x: Tensor, w: Tensor, g: Tensor) -> Tensor:
    return torch.vmap(torch.vmap(lambda a: a.exp() * a))(w)


def chosen(x: Tensor, w: Tensor, g: Tensor) -> Tensor:
    return torch.vmap(lambda w: w.sort(-1).values)(w)


@pytest.mark.parametrize(
    ("model", "what"),
    [(vmap_of_vmap, "vmap of vmap"), (chosen, "aten.sort")],
)
def test_what_has_no_rule_is_refused_with_its_line(model: Model, what: str):
    with pytest.raises(ExportError, match=f"{what}.* under torch.vmap has no form") as refused:
        normalize(plain_trace(model, X, W[:, :4], G))
    assert "loop over the heads" in str(refused.value.hint)
