from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from moh_deploy.package import Manifest, PackageWriter, TensorInfo, VectorSet
from moh_deploy.runtime.open_runner import find_deployed
from moh_deploy.serving import BatchAxis, ServedModel, ServingSettings, open_served
from moh_deploy.serving.joining import Joining, find_joining
from tests.handmade_package import MANIFEST, vectors, write_package


@pytest.fixture
def served(tmp_path: Path) -> Iterator[ServedModel]:
    with_package = open_served(find_deployed(write_package(tmp_path / "p").root), SETTINGS)
    yield with_package
    with_package.close()


SETTINGS = ServingSettings("m")


def test_independent_samples_are_joined(served: ServedModel):
    assert find_joining(served) == Joining(BatchAxis("batch"))


def test_trial_is_seen_by_no_observer(served: ServedModel, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(served, "answer", None)
    find_joining(served)


def test_one_sample_proves_nothing(tmp_path: Path):
    package = write_package(tmp_path / "p", sets=(vectors(batch=1),))
    served = open_served(find_deployed(package.root), SETTINGS)
    assert find_joining(served).reason is not None
    served.close()


@pytest.mark.parametrize("operator", ["ReduceMean", "ReduceMax"])
def test_model_that_mixes_samples_answers_them_alone(tmp_path: Path, operator: str):
    root = _write(tmp_path / "mixing", operator, ["batch", 2])
    served = open_served(find_deployed(root), SETTINGS)
    found = find_joining(served)
    assert found.axis is None
    assert found.reason == "output 'y' of a sample depends on the other samples"
    served.close()


def test_model_of_one_size_answers_requests_alone(tmp_path: Path):
    served = open_served(find_deployed(_write(tmp_path / "fixed", "ReduceMean", [3, 2])), SETTINGS)
    assert find_joining(served).axis is None
    served.close()


def _write(root: Path, operator: str, shape: list[int | str]) -> Path:
    """Write a package of x minus what an operator makes of the first axis."""
    info = TensorInfo("x", "float32", tuple(shape))
    graph = helper.make_graph(
        [
            helper.make_node(operator, ["x", "axes"], ["over"], keepdims=1),
            helper.make_node("Sub", ["x", "over"], ["y"]),
        ],
        "mixing",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [helper.make_tensor("axes", TensorProto.INT64, [1], [0])],
    )
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    dims = {"batch": 3} if "batch" in shape else {}
    over = x.mean(0) if operator == "ReduceMean" else x.max(0)
    manifest: Manifest = replace(
        MANIFEST,
        inputs=(info,),
        outputs=(replace(info, name="y"),),
        dims=dims,
        layers=(),
        ops={},
        proof=None,
    )
    with PackageWriter(root) as writer:
        opset = [helper.make_opsetid("", 20)]
        onnx.save(
            helper.make_model(graph, opset_imports=opset, ir_version=10), writer.path("model.onnx")
        )
        writer.finish(manifest, (VectorSet(dims, {"x": x}, {"y": x - over}, (), ()),))
    return root
