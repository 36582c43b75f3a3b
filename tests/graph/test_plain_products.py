from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from moh_deploy.graph.choose_layers import choose_layers, ops_of
from moh_deploy.graph.load_model import load_ir
from moh_deploy.graph.plain_products import make_projections_plain
from moh_deploy.package import OnnxPackage, with_choices
from moh_deploy.package.writer import save_model
from moh_deploy.runtime.open_runner import open_runner
from tests.projected_package import write_projected


@pytest.fixture
def package(tmp_path: Path) -> OnnxPackage:
    return write_projected(tmp_path / "package")


@pytest.mark.parametrize("choices", [{"all": "projected"}, {"all[seq<=64]": "projected"}])
def test_products_take_the_place_of_projections(
    package: OnnxPackage, tmp_path: Path, choices: dict[str, str]
):
    model = load_ir(package)
    layers = with_choices(package.manifest.layers, {"all": "sparse", **choices}, dims=["seq"])
    choose_layers(model, layers)
    changed, (layer,) = make_projections_plain(model, layers)
    assert changed
    assert (layer.query_projection, layer.output_projection) == (None, None)
    assert layer.choice == "sparse"
    assert all(one.choice == "sparse" for one in layer.ranges)
    choose_layers(model, (layer,))
    assert set(ops_of(model)) == {"moh::MoHAttention"}
    (tmp_path / "plain").mkdir()
    save_model(model, package, tmp_path / "plain")
    plain = replace(
        package, root=tmp_path / "plain", manifest=replace(package.manifest, layers=(layer,))
    )
    (vectors,) = package.vectors
    with open_runner(plain) as runner:
        got = runner.run(vectors.inputs)["y"]
    np.testing.assert_allclose(got, vectors.outputs["y"], rtol=1e-5, atol=1e-5)


def test_a_model_without_projections_stays_as_it_is(package: OnnxPackage):
    model = load_ir(package)
    _, layers = make_projections_plain(model, package.manifest.layers)
    before = ir.serde.serialize_model(model).SerializeToString()
    assert make_projections_plain(model, layers) == (False, layers)
    assert ir.serde.serialize_model(model).SerializeToString() == before
