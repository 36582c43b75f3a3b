"""Alternatives that are more than a path: a server, routing fed, and their measurements."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moh_deploy.decision.alternative import (
    Alternative,
    FixedRoutingModel,
    OpenedAlternative,
    ServerModel,
    why_not_fed,
)
from moh_deploy.decision.measure import timed_inputs
from moh_deploy.decision.measured import of_loads, routing_bias
from moh_deploy.errors import BackendError, ConfigError
from moh_deploy.runtime.base import AS_IT_IS, Variant
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.serving.drill.targets import host_and_port
from tests.grouped_package import write_grouped
from tests.handmade_package import write_package
from tests.labelled_package import write_classifier
from tests.nightly import nightly
from tests.serving.http.running import running


@nightly
def test_server_answers_as_the_package_and_its_errors_name_it(tmp_path: Path):
    package = write_package(tmp_path / "package")
    inputs = package.vectors[0].inputs
    with running(package.root, tmp_path / "said") as server:
        model = ServerModel(server.url, "m", package.manifest)
        with model.open() as runner, open_runner(package) as alone:
            alternative = OpenedAlternative(
                Alternative("served", model.name, model, AS_IT_IS), runner, package.manifest
            )
            np.testing.assert_allclose(
                alternative.outputs(inputs)["y"], alone.run(inputs)["y"], atol=1e-6
            )
            alternative.bound(inputs)()
        absent = ServerModel(server.url, "other", package.manifest)
        with absent.open() as runner:
            alternative = OpenedAlternative(
                Alternative("absent", absent.name, absent, AS_IT_IS), runner, package.manifest
            )
            with pytest.raises(BackendError, match="alternative 'absent' cannot run: status 404"):
                alternative.outputs(inputs)


@pytest.mark.parametrize(
    "url", ["127.0.0.1:80", "https://h:1", "http://h", "http://h:1/v2", "http://h:x", "http://[:1"]
)
def test_url_of_another_form_is_refused(url: str):
    with pytest.raises(ConfigError, match="expected http://HOST:PORT"):
        host_and_port(url)
    assert host_and_port("http://127.0.0.1:8000/") == ("127.0.0.1", 8000)


def test_fed_routing_gives_the_packages_own_answers_without_its_routers(tmp_path: Path):
    package = write_grouped(tmp_path / "package")
    inputs = package.vectors[0].inputs
    assert why_not_fed(package) is None
    with FixedRoutingModel(package).open() as fed, open_runner(package) as alone:
        np.testing.assert_allclose(fed.run(inputs)["y"], alone.run(inputs)["y"], atol=1e-6)
        fed.bound(inputs)()
        # Other inputs have other gates: these are computed anew.
        other = {name: -item for name, item in inputs.items()}
        np.testing.assert_allclose(fed.run(other)["y"], alone.run(other)["y"], atol=1e-6)


def test_bias_of_routing_counts_dead_heads_those_always_open_and_entropy(tmp_path: Path):
    found = of_loads("layer", np.array([10.0, 10.0, 5.0, 5.0, 0.0]), 10, shared=1)
    assert (found.dead, found.always_open, found.open_share) == (1, 1, 0.6)
    shares = np.array([0.5, 0.25, 0.25])
    assert found.entropy == pytest.approx(-(shares * np.log(shares)).sum() / np.log(4))
    assert of_loads("layer", np.full(4, 5.0), 10, 0).entropy == pytest.approx(1)
    assert of_loads("layer", np.array([5.0, 0, 0]), 5, 0).entropy == 0
    assert of_loads("layer", np.array([5.0]), 5, 1).entropy is None


def test_bias_of_routing_leaves_padding_out(tmp_path: Path):
    package = write_grouped(tmp_path / "package")
    run = package.vectors[0]
    gates = run.gates[0] != 0
    (whole,) = routing_bias(package, Variant(), [(run.inputs, None)])
    assert whole.tokens == gates[..., 0].size
    assert whole.open_share == pytest.approx(gates.mean())
    mask = np.zeros(gates.shape[:2], bool)
    mask[0, 0] = True
    (first,) = routing_bias(package, Variant(), [(run.inputs, mask)])
    assert first.tokens == 1
    assert first.open_share == pytest.approx(gates[0, 0].mean())


# What alternatives are timed on, where a package brings nothing along.


@pytest.mark.parametrize("sizes", [(), ({"batch": 2},)], ids=["example", "asked"])
def test_package_without_recorded_runs_is_refused(
    tmp_path: Path, sizes: tuple[dict[str, int], ...]
):
    bare = replace(write_classifier(tmp_path / "package"), vectors=())
    with pytest.raises(ConfigError, match="package holds no recorded inputs, and no samples are"):
        timed_inputs(bare, None, sizes)
