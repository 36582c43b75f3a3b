"""Inputs from files become requests, whose routing is counted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moh_deploy.errors import ConfigError
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.serving.drift.reference import record_requests, requests_of
from moh_deploy.serving.telemetry.routing import RoutingReader
from moh_deploy.validate.reference.samples import recorded_samples
from tests.edge_case_package import inputs, write_edge_package
from tests.handmade_package import MANIFEST, vectors


def test_samples_that_are_left_over_make_no_request():
    files = recorded_samples([vectors(batch=5), vectors(batch=3, seed=1)])
    found = list(requests_of(MANIFEST, files, 2))
    assert [one["x"].shape[0] for one in found] == [2, 2, 2]
    np.testing.assert_array_equal(found[1]["x"], files[0].known.inputs["x"][2:4])


def test_file_of_a_model_without_samples_is_a_request():
    fixed = replace(MANIFEST, dims={}, inputs=(replace(MANIFEST.inputs[0], shape=(2, 3, 8)),))
    files = recorded_samples([vectors(), vectors(seed=1)])
    assert [len(one["x"]) for one in requests_of(fixed, files, 1)] == [2, 2]


def test_each_request_is_a_row(tmp_path: Path):
    package = write_edge_package(tmp_path / "package")
    reader = RoutingReader.of(package)
    given = [inputs(batch=1, seed=seed) for seed in range(3)]
    with open_runner(package, Variant(extra_outputs=reader.names)) as runner:
        found = record_requests(package, reader, runner, iter(given))
        alone = [reader.count(one, runner.run(one), (1,))[0] for one in given]
        np.testing.assert_array_equal(found.rows, alone)
        assert found.requests.tolist() == [1, 1, 1]
        assert found.about.digest == package.manifest.files["model.onnx"]
        with pytest.raises(ConfigError, match="input 'valid' is missing"):
            record_requests(package, reader, runner, iter([{"x": given[0]["x"]}]))
