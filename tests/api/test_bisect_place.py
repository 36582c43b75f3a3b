"""Without a reference, bisect names no wrong place: faults in the middle of exported models.

Two vision transformers of four layers with weighted gates (one with lively weights, one with
weights so small that an output moves less than the routers before it), and a decoder of three
layers with grouped queries, whose gates are 0 and 1.
"""

from pathlib import Path

import pytest
import torch
from torch import nn

import moh_deploy
from moh_deploy.package import OnnxPackage
from moh_deploy.validate.bisection.locate import Divergence
from tests.bare_package import write_bare
from tests.exporting import prove_in_this_process
from tests.nightly import nightly, one_in
from tests.validate.bisection.planted import (
    Attribute,
    Change,
    Input,
    Scaled,
    Stale,
    SwappedHeads,
    SwappedInputs,
    plant,
)
from tests.zoo.language import Prefill, prompt_in
from tests.zoo.model import seeded
from tests.zoo.published import TinyVision, images_in

pytestmark = nightly


class Vision(TinyVision):
    """Blocks with norms in front, and a norm before the head."""

    def __init__(self) -> None:
        super().__init__(depth=4)
        self.norm = nn.LayerNorm(48)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.stem(images).flatten(2).transpose(1, 2) + self.where
        return self.head(self.norm(self.trunk(x)).mean(1))


def calm() -> nn.Module:
    model = seeded(Vision)()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.05)
    return model


MODELS = {
    "lively": (seeded(Vision), images_in()),
    "calm": (calm, images_in(4)),
    "decoder": (seeded(lambda: Prefill(depth=3)), prompt_in()),
}


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        prove_in_this_process(patch)
        for name, (build, inputs) in MODELS.items():
            found[name] = tmp_path_factory.mktemp("models") / name
            moh_deploy.export(
                build().eval(),
                found[name],
                inputs={item.name: item.value for item in inputs},
                dynamic=[
                    f"{item.name}:{axis}={d}" for item in inputs for axis, d in item.dims.items()
                ],
            )
    return found


ATTENTION, MLP = "trunk.1.a.1", "trunk.1.b"

SEEN: dict[str, Change] = {
    "stale queries": Stale(f"{ATTENTION}.MoHQueryProjection", 1, 0.05),
    "stale keys": Stale(f"{ATTENTION}.MatMul", 1, 0.05),
    "stale values": Stale(f"{ATTENTION}.MatMul#2", 1, 0.02),
    "stale bias of values": Stale(f"{ATTENTION}.Add#2", 1, 0.5),
    "stale output projection": Stale(f"{ATTENTION}.MoHOutputProjection", 1, 0.02),
    "stale router": Stale(f"{ATTENTION}.MatMul#3", 1, 0.02),
    "stale MLP": Stale(f"{MLP}.3.MatMul", 1, 0.02),
    "stale norm": Stale("trunk.1.a.0.LayerNormalization", 1, 0.02),
    "wrong scale": Attribute(f"{ATTENTION}.MoHAttention", "scale", lambda scale: scale * 1.2),
    "swapped heads of queries": SwappedHeads(f"{ATTENTION}.MoHQueryProjection", 1, 8),
    "swapped heads of values": SwappedHeads(f"{ATTENTION}.MatMul#2", 1, 8),
    "one head more": Attribute(f"{ATTENTION}.MoHRouter", "top_k", lambda k: k + 1),
    "one head less": Attribute(f"{ATTENTION}.MoHRouter", "top_k", lambda k: k - 1),
    "swapped shared and stage scores": SwappedInputs(f"{ATTENTION}.MoHRouter", 1, 2),
    "router before the norm": Input(f"{ATTENTION}.MatMul#3", 0, "add_83"),
    "other epsilon": Attribute("trunk.1.a.0.LayerNormalization", "epsilon", lambda e: 1e-2),
    "stale head": Stale("head.Gemm", 1, 0.05),
    "stale stem": Stale("stem.Conv", 1, 0.05),
}
"""Of both vision transformers: narrowed down to a layer."""

UNSEEN: dict[str, Change] = {
    "scaled residual stream": Scaled("trunk.0.Add#2", 1.2),
    "scaled embedding": Scaled("model.Add", 1.2),
}
"""What a router behind a norm does not see: its layer's router agrees to rounding."""

LAYER = "layers.1.self_attn"

DECODER: dict[str, Change] = {
    "stale queries": Stale(f"{LAYER}.q_proj.MatMul", 1, 0.05),
    "stale keys": Stale(f"{LAYER}.k_proj.MatMul", 1, 0.05),
    "stale values": Stale(f"{LAYER}.v_proj.MatMul", 1, 0.05),
    "stale values, a little": Stale(f"{LAYER}.v_proj.MatMul", 1, 0.001),
    "stale output projection": Stale(f"{LAYER}.MoHOutputProjection", 1, 0.05),
    "stale MLP": Stale("layers.1.down_proj.MatMul", 1, 0.001),
    "stale norm": Stale("layers.1.input_norm.Mul", 0, 0.05),
    "wrong scale": Attribute(f"{LAYER}.MoHAttention", "scale", lambda scale: scale * 1.01),
    "swapped heads of queries": SwappedHeads(f"{LAYER}.q_proj.MatMul", 1, 8),
    "swapped heads of keys": SwappedHeads(f"{LAYER}.k_proj.MatMul", 1, 8),
    "turned the other way": SwappedInputs(f"{LAYER}.Concat#3", 0, 1),
    "stale embedding": Stale("embed_tokens.Gather", 0, 0.05),
    "stale head": Stale("model.MatMul", 1, 0.05),
}

ROUTER: dict[str, Change] = {
    "one head more": Attribute(f"{LAYER}.MoHRouter", "top_k", lambda k: k + 1),
}

VISION = {**SEEN, **UNSEEN}
CALM = ("stale queries", "stale values", "stale MLP", "scaled residual stream")


@pytest.fixture(scope="module")
def bare(packages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same as earlier versions wrote them: of layers their gates alone are known."""
    folder = tmp_path_factory.mktemp("bare")
    return {
        name: write_bare(OnnxPackage.open(packages[name]), folder / name).root
        for name in ("lively", "decoder")
    }


def bisected(right: Path, tmp_path: Path, fault: Change) -> tuple[str, Divergence, str]:
    """Return the node that is wrong, what was found, and what is said of it."""
    name = plant(right, tmp_path / "wrong", fault)
    report = moh_deploy.bisect(tmp_path / "wrong", kernels="off")
    assert report.divergence.node is None
    assert "--reference DIR" in report.sentence
    return name, report.divergence, report.sentence


@pytest.mark.parametrize(
    "planted",
    one_in(5, [*(("lively", item) for item in VISION), *(("calm", item) for item in CALM)]),
)
def test_wrong_node_is_among_few(
    planted: tuple[str, str], packages: dict[str, Path], tmp_path: Path
):
    model, fault = planted
    name, found, _ = bisected(packages[model], tmp_path, VISION[fault])
    assert name in {place.node for place in found.suspects}
    assert len(found.suspects) < 40  # of some 90
    assert name in {place.node for place in (*found.between.nodes, *found.between.unseen)}


@pytest.mark.parametrize("fault", ["stale router", "one head more", "one head less"])
def test_fault_of_a_router_is_narrowed_to_what_it_alone_reads(
    fault: str, packages: dict[str, Path], tmp_path: Path
):
    """Whether or not any token still chooses the heads that it should."""
    name, found, _ = bisected(packages["calm"], tmp_path, SEEN[fault])
    assert name in {place.node for place in found.suspects}
    assert len(found.suspects) < 10


@pytest.mark.parametrize("fault", UNSEEN)
def test_node_that_a_norm_hides_is_named_as_such(fault: str, bare: dict[str, Path], tmp_path: Path):
    name, found, sentence = bisected(bare["lively"], tmp_path, UNSEEN[fault])
    assert name in {place.node for place in found.between.unseen}
    assert "before, where a fault need not show in the router of" in sentence


@pytest.mark.parametrize("fault", one_in(4, DECODER))
def test_gates_of_0_and_1_prove_nothing_right(fault: str, bare: dict[str, Path], tmp_path: Path):
    name, found, sentence = bisected(bare["decoder"], tmp_path, DECODER[fault])
    assert found.between.after == ()
    assert name in {place.node for place in found.suspects}
    assert "; no other recorded value proves anything there right: one of " in sentence
    assert len(sentence) < 700


@pytest.mark.parametrize("fault", ROUTER)
def test_output_that_is_right_leaves_the_router(fault: str, bare: dict[str, Path], tmp_path: Path):
    name, found, sentence = bisected(bare["decoder"], tmp_path, ROUTER[fault])
    assert found.between.after == ("output 'output'",)
    assert name in {place.node for place in found.suspects}
    assert len(found.suspects) < 25
    assert sentence.startswith("diverges in what leads to the router of 'layers.1.self_attn', and")


@pytest.mark.parametrize("fault", one_in(5, [*DECODER, *ROUTER]))
def test_scores_and_attention_narrow_what_gates_of_0_and_1_do_not(
    fault: str, packages: dict[str, Path], tmp_path: Path
):
    name, found, _ = bisected(packages["decoder"], tmp_path, {**DECODER, **ROUTER}[fault])
    assert name in {place.node for place in (*found.between.nodes, *found.between.unseen)}


@pytest.mark.parametrize("model", MODELS)
def test_nothing_diverges_in_the_models_themselves(model: str, packages: dict[str, Path]):
    assert not moh_deploy.bisect(packages[model], kernels="off").diverges


def test_reference_leads_to_the_node(packages: dict[str, Path], tmp_path: Path):
    right = packages["decoder"]
    name = plant(right, tmp_path / "wrong", DECODER["swapped heads of queries"])
    found = moh_deploy.bisect(tmp_path / "wrong", reference=right, kernels="off").divergence
    assert found.node.node == name
