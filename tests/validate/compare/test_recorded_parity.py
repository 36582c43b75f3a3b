"""Nothing is made of a package that is not its original model."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

import moh_deploy
from moh_deploy.errors import ValidationError
from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.base import Variant
from moh_deploy.validate.compare.parity import ON_BODIES, compare_recorded, require_equal
from moh_deploy.validate.reference.reference import RECORDED
from tests.handmade_package import vectors
from tests.handmade_package import write_package as write_handmade
from tests.kernel_library import required_library
from tests.routed_package import write_routed
from tests.validate.mutations.faults import plant
from tests.validate.mutations.packages import write_package


def test_right_package_is_equal(tmp_path: Path):
    package = write_routed(tmp_path / "package")
    assert compare_recorded(package).equal
    require_equal(package)


def test_wrong_package_is_refused_with_its_path_the_layer_and_the_next_step(tmp_path: Path):
    package = write_routed(tmp_path / "package", "wrong scale")
    refused = r"package, the package to start from, is not equal"
    with pytest.raises(ValidationError, match=refused) as no:
        require_equal(package)
    assert "'blocks.1.attn'" in no.value.message
    assert "`moh-deploy bisect` finds where it diverges" in (no.value.hint or "")


def with_a_wrong_body(tmp_path: Path) -> OnnxPackage:
    """Write a package whose kernels are right, and whose bodies are not."""
    required_library()
    right = write_routed(tmp_path / "right")
    model, layers = onnx.load(right.model_path), right.manifest.layers
    wrong = plant("body: scale + 1 %", model, layers, 1, right.vectors)
    return write_package(right, tmp_path / "package", wrong)


def test_wrong_function_bodies_are_refused_though_kernels_are_right(tmp_path: Path):
    package = with_a_wrong_body(tmp_path)
    kernels, bodies = compare_recorded(package).comparisons
    assert (kernels.reference, bodies.reference) == (RECORDED, RECORDED + ON_BODIES)
    assert kernels.equal
    assert not bodies.equal
    with pytest.raises(ValidationError, match=r"on function bodies: .*'blocks\.1\.attn'"):
        require_equal(package)


def test_every_command_that_relies_on_function_bodies_refuses_wrong_ones(tmp_path: Path):
    root = with_a_wrong_body(tmp_path).root
    assert [one.equal for one in moh_deploy.verify(root).comparisons] == [True, False]
    assert moh_deploy.verify(root, kernels="require").answer == "NOT EQUAL"
    with pytest.raises(ValidationError, match="on function bodies"):
        moh_deploy.precision(root, to="float16", output=tmp_path / "half")
    with pytest.raises(ValidationError, match="on function bodies"):
        moh_deploy.tune(root, choose={"all": "sparse"})


def test_function_bodies_run_once_and_on_the_smallest_batch_as_long_as_the_example(tmp_path: Path):
    required_library()
    sets = (vectors(), vectors(batch=1, seq=1), vectors(batch=3), vectors(batch=1))
    package = write_handmade(tmp_path / "package", sets=sets)
    report = compare_recorded(package)
    assert report.vector_sets == 4
    assert [one.vector_sets for one in report.comparisons] == [4, 1]
    assert {one.vectors for one in report.comparisons[1].outputs} == {"3 (batch=1, seq=3)"}
    assert not compare_recorded(package, Variant(kernels="off")).parts
