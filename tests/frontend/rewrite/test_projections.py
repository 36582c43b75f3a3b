import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moh_deploy.frontend.fx.graph import ancestors, op, shape
from moh_deploy.frontend.normalize import normalize
from moh_deploy.frontend.normalize.fold import fold_constants
from moh_deploy.frontend.prove.record import record
from moh_deploy.frontend.recognize import recognize
from moh_deploy.frontend.rewrite import Rewrite, commit, insert
from tests.frontend.traced import nodes, plain_trace
from tests.nightly import sampled

B, S, C, H, D = 2, 5, 12, 4, 3
X = torch.randn(B, S, C, generator=torch.Generator().manual_seed(0))


def heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (H, D)).transpose(1, 2)


class Layer(nn.Module):
    """An MoH layer in parts, each of which a test may write differently."""

    def __init__(self, *, bias: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v = (nn.Linear(C, H * D, bias=bias) for _ in range(3))
        self.gate, self.out = nn.Linear(C, H, bias=False), nn.Linear(H * D, C, bias=bias)
        self.more = nn.Linear(C, H * D, bias=False)

    def query(self, x: Tensor) -> Tensor:
        return heads(self.q(x))

    def key(self, x: Tensor) -> Tensor:
        return heads(self.k(x))

    def gates(self, x: Tensor) -> Tensor:
        return self.gate(x).relu()

    def merge(self, y: Tensor) -> Tensor:
        """[B, S, H, D] to the result."""
        return self.out(y.flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        y = F.scaled_dot_product_attention(self.query(x), self.key(x), heads(self.v(x)))
        return self.merge(y.transpose(1, 2) * self.gates(x)[..., None])


def rewritten(model: nn.Module) -> Rewrite:
    """What was inserted, which must agree with the original and take over from it."""
    program = normalize(plain_trace(model, X))
    rewrites = insert(program, recognize(program))
    recorded = record(program, rewrites, [X])
    assert [layer.disagreement for layer in recorded.layers] == [None] * len(rewrites)
    done = commit(program, rewrites)
    fold_constants(done)
    torch.testing.assert_close(done.module()(X)[0], model(X))
    return rewrites[0]


def projected(model: nn.Module) -> tuple[bool, bool]:
    found = rewritten(model)
    return found.query_projection is not None, found.output_projection is not None


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
def test_projections_around_attention_are_taken_over(bias: bool):
    found = rewritten(Layer(bias=bias))
    assert found.query_projection is found.attention.args[0]
    x, weight, gates, added, num_heads = found.query_projection.args
    assert (shape(x), shape(weight), shape(gates)) == ((B, S, C), (C, H * D), (B, S, H))
    assert (added is not None, num_heads) == (bias, H)
    assert gates is found.attention.args[3]
    (output,) = nodes_of(found.output_projection.new, "output_projection")
    assert output.args[0] is found.attention
    assert (output.args[2], output.args[3] is not None, output.args[4]) == (gates, bias, H)


def nodes_of(node, name: str):
    return [source for source in ancestors(node) if op(source) == name]


def test_nothing_stands_between_the_projections_and_the_attention():
    program = normalize(plain_trace(Layer(), X))
    done = commit(program, insert(program, recognize(program)))
    fold_constants(done)
    (output,) = done.graph.find_nodes(op="output")
    left = {op(node) for node in ancestors(output)} - {""}
    wanted = {"query_projection", "attention", "output_projection"}
    assert left == {*wanted, "linear", "relu"}


class Scaled(Layer):
    def query(self, x: Tensor) -> Tensor:
        return heads(self.q(x) * 0.5) / 4


class WithDropout(Layer):
    def merge(self, y: Tensor) -> Tensor:
        return self.out(F.dropout(y.flatten(2), 0.2, training=False))


class Matrices(Layer):
    """`x @ W`, one weight for each head, and a bias that is added behind it."""

    def query(self, x: Tensor) -> Tensor:
        return torch.einsum("bsc,hdc->bhsd", x, self.q.weight.view(H, D, C))

    def merge(self, y: Tensor) -> Tensor:
        weight = self.out.weight.mT.view(H, D, C)
        return torch.einsum("bshd,hdc->bsc", y, weight) + self.out.bias


class FlatTokens(Layer):
    def query(self, x: Tensor) -> Tensor:
        return heads(self.q(x.reshape(B * S, C)).view(B, S, H * D))

    def merge(self, y: Tensor) -> Tensor:
        return self.out(y.reshape(B * S, H * D)).view(B, S, C)


class AdaptedWeight(Layer):
    """A low-rank adapter that is merged into the weight while the model runs."""

    def query(self, x: Tensor) -> Tensor:
        update = self.more.weight[:, :2] @ self.k.weight[:2]
        return heads(F.linear(x, self.q.weight + 0.1 * update, self.q.bias))


@sampled(2)
@pytest.mark.parametrize("model", [Scaled, WithDropout, Matrices, FlatTokens, AdaptedWeight])
def test_both_projections_however_they_are_written(model: type[Layer]):
    assert projected(model()) == (True, True)


def test_a_number_that_scales_the_query_scales_the_scores():
    assert rewritten(Scaled()).attention.args[9] == pytest.approx(D**-0.5 / 8)


class OtherTokensAreProjected(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.q(2 * x).mean()


class ProjectedAgain(Layer):
    """The same product: it is computed once, so for somebody else, too."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.q(x).mean()


class QueryIsReadElsewhere(Layer):
    """One result of the projection serves attention and somebody else."""

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x)
        y = F.scaled_dot_product_attention(heads(q), self.key(x), heads(self.v(x)))
        return self.merge(y.transpose(1, 2) * self.gates(x)[..., None]) + q


class RouterReadsQuery(Layer):
    def forward(self, x: Tensor) -> Tensor:
        q = self.query(x)
        y = F.scaled_dot_product_attention(q, self.key(x), heads(self.v(x)))
        gates = (q.norm(dim=-1) - 0.5).relu().transpose(1, 2)
        return self.merge(y.transpose(1, 2) * gates[..., None])


class KeyIsQuery(Layer):
    def forward(self, x: Tensor) -> Tensor:
        q = self.query(x)
        y = F.scaled_dot_product_attention(q, q, heads(self.v(x)))
        return self.merge(y.transpose(1, 2) * self.gates(x)[..., None])


class Adapter(Layer):
    def query(self, x: Tensor) -> Tensor:
        return heads(self.q(x) + 0.1 * self.more(x))


class Rotated(Layer):
    def query(self, x: Tensor) -> Tensor:
        angle = torch.arange(S)[:, None] * 0.3
        q = super().query(x)
        return q * angle.cos() + q.roll(1, dims=-1) * angle.sin()


class Normalized(Layer):
    def query(self, x: Tensor) -> Tensor:
        return F.layer_norm(super().query(x), (D,))


@sampled(2)
@pytest.mark.parametrize(
    "model",
    [
        *(QueryIsReadElsewhere, ProjectedAgain, RouterReadsQuery, KeyIsQuery),
        *(Adapter, Rotated, Normalized),
    ],
)
def test_query_that_is_more_than_a_projection_for_attention_is_computed_whole(model: type[Layer]):
    assert projected(model()) == (False, True)


def test_another_projection_with_the_same_weight_does_not_matter():
    assert projected(OtherTokensAreProjected()) == (True, True)


class HeadsAreRead(Layer):
    def merge(self, y: Tensor) -> Tensor:
        return super().merge(y) + y.mean()


class NormBeforeOutput(Layer):
    def merge(self, y: Tensor) -> Tensor:
        return self.out(F.layer_norm(y.flatten(2), (H * D,)))


class TwoReaders(Layer):
    def merge(self, y: Tensor) -> Tensor:
        return super().merge(y) + self.more(y.flatten(2))


class Residual(Layer):
    def forward(self, x: Tensor) -> Tensor:
        y = F.scaled_dot_product_attention(self.query(x), self.key(x), heads(self.v(x)))
        return x + (y.transpose(1, 2) * self.gates(x)[..., None]).flatten(2)


@sampled(2)
@pytest.mark.parametrize("model", [HeadsAreRead, NormBeforeOutput, TwoReaders, Residual])
def test_heads_that_are_read_otherwise_are_not_projected(model: type[Layer]):
    assert projected(model()) == (True, False)


class RunTwice(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(super().forward(x))


def test_layer_that_runs_twice_has_its_weights_once():
    program = normalize(plain_trace(RunTwice(), X.expand(B, S, C)))
    done = commit(program, insert(program, recognize(program)))
    fold_constants(done)
    first, second = nodes(done, "query_projection")
    assert first.args[1] is second.args[1]


def test_wrong_output_projection_keeps_the_layer():
    program = normalize(plain_trace(Layer(), X))
    (found,) = insert(program, recognize(program))
    (output,) = nodes_of(found.output_projection.new, "output_projection")
    output.update_arg(3, None)
    program.graph_module.recompile()
    (layer,) = record(program, [found], [X]).layers
    assert layer.disagreement.startswith("MoHOutputProjection differs")
    kept = found.kept(layer.disagreement)
    assert (kept.query_projection, kept.output_projection) == (None, None)
    done = commit(program, [kept])
    torch.testing.assert_close(done.module()(X)[0], Layer()(X))
