"""The profile of good traffic, in a file."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moh_deploy.errors import ConfigError
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.serving.drift.reference import (
    RoutingReference,
    profile_of,
    read_reference,
    record_requests,
    requests_of,
    write_reference,
)
from moh_deploy.serving.telemetry.routing import RoutingReader
from moh_deploy.validate.reference.samples import recorded_samples
from tests.edge_case_package import inputs, write_edge_package
from tests.handmade_package import MANIFEST, vectors
from tests.serving.drift.traffic import LAYOUT, requests, window


@pytest.fixture(scope="module")
def reference() -> RoutingReference:
    return profile_of(window(requests(150, seed=0)), window=64, rate=0.01)


def test_reference_is_read_as_it_was_written(reference: RoutingReference, tmp_path: Path):
    write_reference(tmp_path / "reference.json", reference)
    assert read_reference(tmp_path / "reference.json") == reference


def test_counts_are_those_of_the_requests(reference: RoutingReference):
    rows = requests(150, seed=0).sum(axis=0)
    rows[[columns.margin_sum for columns in LAYOUT.columns]] = 0
    np.testing.assert_array_equal(reference.totals, rows)


def test_limits_are_of_windows_up_to_four_times_the_reference(reference: RoutingReference):
    assert [limit.requests for limit in reference.limits] == [64, 128, 256, 512]


@pytest.mark.parametrize(
    ("requests", "limits"), [(63, None), (64, 64), (127, 64), (128, 128), (10_000, 512)]
)
def test_window_is_judged_by_the_next_smaller_size(
    reference: RoutingReference, requests: int, limits: int | None
):
    found = reference.limits_for(requests)
    assert (None if found is None else found.requests) == limits


def test_too_few_requests_are_no_reference():
    with pytest.raises(ConfigError, match="of 99 requests in 99 runs was asked for, expected 100"):
        profile_of(window(requests(99, seed=0)), window=64, rate=0.01)


def test_gates_that_are_no_numbers_are_no_reference():
    rows = requests(100, seed=0)
    rows[3, LAYOUT.columns[1].nonfinite] = 1
    with pytest.raises(ConfigError, match=r"gates of blocks\.1 are NaN"):
        profile_of(window(rows), window=64, rate=0.01)


def _set(path: str, value: Any) -> Callable[[Any], None]:
    def change(content: Any) -> None:
        *way, last = path.split(".")
        for name in way:
            content = content[int(name) if name.isdecimal() else name]
        content[int(last) if last.isdecimal() else last] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("format_version", 2), "no reference of format version 1: got 2"),
        (_set("requests", 0), "key .requests.: Input should be greater"),
        (_set("layers.0.on", [1.0]), r"layer 'blocks\.0' contradicts itself"),
        (_set("layers.0.tokens", -1.0), r"layers\.0\.tokens"),
        (_set("limits", []), "expected ascending sizes"),
        (_set("limits.1.requests", 64), "expected ascending sizes"),
        (_set("limits.0.layers.0.margin", None), "a limit of margin is missing"),
        (_set("limits.0.layers.1.heads", [0.1]), "a limit of head is missing"),
        (_set("limits.0.layers", []), "limits are of 0 layers"),
        (_set("limits.0.layers.0.load", float("nan")), "load"),
        (_set("more", 1), "more"),
    ],
)
def test_file_that_is_no_reference_is_refused(
    reference: RoutingReference, tmp_path: Path, change: Callable[[Any], None], message: str
):
    path = tmp_path / "reference.json"
    write_reference(path, reference)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=message):
        read_reference(path)


def test_another_document_is_no_reference_and_what_writes_one_is_said(tmp_path: Path):
    path = tmp_path / "manifest.json"
    path.write_text('{"format_version": 1, "model": "m"}')
    with pytest.raises(ConfigError, match=r"manifest\.json is no reference: ") as raised:
        read_reference(path)
    assert "moh-deploy profile" in str(raised.value.hint)


def test_missing_file_says_what_writes_it(tmp_path: Path):
    with pytest.raises(ConfigError, match="does not exist") as raised:
        read_reference(tmp_path / "reference.json")
    assert "moh-deploy profile" in str(raised.value.hint)


# Inputs from files become requests, whose routing is counted.


def test_samples_that_are_left_over_make_no_request():
    files = recorded_samples([vectors(batch=5), vectors(batch=3, seed=1)])
    found = list(requests_of(MANIFEST, files, 2))
    assert [item["x"].shape[0] for item in found] == [2, 2, 2]
    np.testing.assert_array_equal(found[1]["x"], files[0].known.inputs["x"][2:4])


def test_file_of_a_model_without_samples_is_a_request():
    fixed = replace(MANIFEST, dims={}, inputs=(replace(MANIFEST.inputs[0], shape=(2, 3, 8)),))
    files = recorded_samples([vectors(), vectors(seed=1)])
    assert [len(item["x"]) for item in requests_of(fixed, files, 1)] == [2, 2]


def test_each_request_is_a_row(tmp_path: Path):
    package = write_edge_package(tmp_path / "package")
    reader = RoutingReader.of(package)
    given = [inputs(batch=1, seed=seed) for seed in range(3)]
    with open_runner(package, Variant(extra_outputs=reader.names)) as runner:
        found = record_requests(package, reader, runner, iter(given))
        alone = [reader.count(item, runner.run(item), (1,))[0] for item in given]
        np.testing.assert_array_equal(found.rows, alone)
        assert found.requests.tolist() == [1, 1, 1]
        assert found.about.digest == package.manifest.files["model.onnx"]
        with pytest.raises(ConfigError, match="input 'valid' is missing"):
            record_requests(package, reader, runner, iter([{"x": given[0]["x"]}]))
