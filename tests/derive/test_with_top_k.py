from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import moh_deploy
from moh_deploy.derive.with_top_k import with_top_k
from moh_deploy.errors import ConfigError
from moh_deploy.graph.change_top_k import change_top_k
from moh_deploy.graph.load_model import load_ir
from moh_deploy.package import OnnxPackage
from tests.grouped_package import HEADS, write_grouped
from tests.handmade_package import write_package


@pytest.fixture
def package(tmp_path: Path) -> OnnxPackage:
    return write_grouped(tmp_path / "package")


@pytest.mark.parametrize(("top_k", "open_heads"), [(1, 2), (4, 5), (None, HEADS)])
def test_each_token_has_as_many_heads(
    package: OnnxPackage, tmp_path: Path, top_k: int | None, open_heads: int
):
    made = with_top_k(package.root, tmp_path / "made", top_k=top_k)
    found = OnnxPackage.open(made.root)
    assert (np.count_nonzero(found.vectors[0].gates[0], axis=-1) == open_heads).all()
    (layer,) = found.manifest.layers
    assert (layer.top_k, layer.active_share) == (open_heads - 1, open_heads / HEADS)
    report = moh_deploy.verify(made.root)
    assert report.equal
    assert "(not the original model)" in report.to_markdown()


def test_same_number_is_the_same_model(package: OnnxPackage, tmp_path: Path):
    made = with_top_k(package.root, tmp_path / "made", top_k=2)
    before, after = package.vectors[0], OnnxPackage.open(made.root).vectors[0]
    np.testing.assert_array_equal(before.outputs["y"], after.outputs["y"])


@pytest.mark.parametrize("top_k", [0, 6])
def test_more_heads_than_there_are_is_refused(package: OnnxPackage, tmp_path: Path, top_k: int):
    with pytest.raises(ConfigError, match=f"top_k is {top_k}, but layer .* has 5 routed heads"):
        with_top_k(package.root, tmp_path / "made", top_k=top_k)


def test_router_of_plain_operators_is_refused(tmp_path: Path):
    write_package(tmp_path / "package")
    with pytest.raises(ConfigError, match="form 'custom': plain operators make its gates"):
        with_top_k(tmp_path / "package", tmp_path / "made", top_k=1)


@pytest.mark.parametrize("weighing", ["Mul", "Div"])
def test_router_whose_gates_are_weighed_behind_it_is_refused(package: OnnxPackage, weighing: str):
    model = load_ir(package)
    (router,) = (node for node in model.graph if node.op_type == "MoHRouter")
    (gates,) = router.outputs
    weighed = ir.node(weighing, [gates, gates])
    gates.replace_all_uses_with(weighed.outputs[0])
    for place in (0, 1):
        weighed.replace_input_with(place, gates)
    model.graph.insert_after(router, weighed)
    gates.name, weighed.outputs[0].name = "gates.raw", "gates"
    with pytest.raises(ConfigError, match="operators behind the router weigh its gates"):
        change_top_k(model, package.manifest.layers, 4)
