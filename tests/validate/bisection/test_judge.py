"""What else is recorded narrows the place of a fault, with no other change."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

import moh_deploy
from moh_deploy.package import LayerInfo, OnnxPackage, VectorSet
from moh_deploy.validate.bisection.judge import RecordedValue, VariantJudge, recorded_values
from moh_deploy.validate.bisection.locate import Between
from moh_deploy.validate.bisection.places import ForcedModel
from moh_deploy.validate.compare.policy import BUILT_IN_POLICY
from tests.bare_package import write_bare
from tests.nightly import sampled
from tests.routed_package import DEPTH, Fault, write_routed


def place(package: OnnxPackage) -> Between:
    found = moh_deploy.bisect(package.root, kernels="off").divergence
    assert found.between is not None
    return found.between


@sampled(2)
@pytest.mark.parametrize(
    ("fault", "after", "before", "nodes"),
    [
        (
            "stale weights",
            "attention of 'blocks.1.attn'",
            "router of 'blocks.2.attn'",
            {"projected_1", "x_2"},
        ),
        ("wrong scale", "router of 'blocks.1.attn'", "attention of 'blocks.1.attn'", {"y_1"}),
    ],
)
def test_recorded_inner_values_bound_the_place(
    fault: Fault, after: str, before: str, nodes: set[str], tmp_path: Path
):
    wrong = write_routed(tmp_path / "wrong", fault)
    wide, found = place(write_bare(wrong, tmp_path / "bare")), place(wrong)
    assert (found.after[-1], found.before) == (after, before)
    assert nodes <= {node.value for node in found.nodes}
    assert {node.value for node in found.nodes} < {node.value for node in wide.nodes}


@pytest.mark.parametrize("name", ["y", "no such value"])
def test_inner_value_that_is_an_output_or_is_not_made_is_left_out(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    package = write_routed(tmp_path / "right")
    model = ForcedModel.of(package, package.vectors)
    judge = VariantJudge(model, package.vectors, BUILT_IN_POLICY)

    def more(
        layers: Sequence[LayerInfo], vectors: VectorSet, shown: object
    ) -> Iterator[RecordedValue]:
        yield RecordedValue("another", name, vectors.outputs["y"], inner=True)
        yield from recorded_values(layers, vectors)

    monkeypatch.setattr("moh_deploy.validate.bisection.judge.recorded_values", more)
    found = [item.what for item in judge.judge(model, inner=True)]
    assert found == [*(f"router of 'blocks.{i}.attn'" for i in range(DEPTH)), "output 'y'"]


def test_drift_leaves_out_tokens_that_choose_other_heads():
    gates = np.asarray([[[1.0, 0.5, 0.0], [0.3, 0.0, 0.7]]], np.float32)  # [B, S, H]
    got = np.asarray([[[1.0, 0.0, 0.9], [0.3, 0.0, 0.8]]], np.float32)
    margins = np.ones((1, 2), np.float32)
    value = RecordedValue("router", "gates", gates, "blocks.0.attn", margins)
    assert value.drift(got, gates) == pytest.approx(0.1)
    assert value.drift(got[:, :1], gates[:, :1]) is None  # the only token jumps
    assert value.drift(got[:, :1], gates) is None
    integers = RecordedValue("output", "top", np.asarray([1, 2]))
    assert integers.drift(np.asarray([1, 3]), integers.expected) is None
