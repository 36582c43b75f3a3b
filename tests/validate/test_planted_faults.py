"""What can be wrong with one layer of a package is refused; what may differ is not."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

import moh_deploy
from moh_deploy.backends.onnxruntime import open_session
from moh_deploy.backends.ort_variants import OrtVariants
from moh_deploy.errors import ValidationError
from moh_deploy.validate.parity import compare
from tests.kernel_library import required_library
from tests.routed_package import Fault, write_routed

FAULTS = [fault for fault in get_args(Fault) if fault != "other tie order"]

IN_THE_ROUTER = {
    "softmax after top-k",
    "missing renormalisation",
    "one gate off by 1 %",
    "RoPE before the router",
    "top_k off by one",
    "swapped shared and routed heads",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_refused_with_a_sentence_that_names_the_layer(fault: Fault, tmp_path: Path):
    write_routed(tmp_path / "package", fault)
    report = moh_deploy.verify(tmp_path / "package", kernels="off")
    with pytest.raises(ValidationError) as refused:
        report.raise_if_unequal()
    if fault == "float16 scores":  # Each error is within the tolerance, their sum is not.
        expected = "nearest to it is the router of layer 'blocks.1.attn'"
    elif fault in IN_THE_ROUTER:
        expected = "outputs agree: the error is in the router of layer 'blocks.1.attn'."
    else:
        expected = (
            "outputs still differ: the error first shows no later than the router of layer"
            " 'blocks.2.attn', and behind that of layer 'blocks.1.attn'."
        )
    assert expected in str(refused.value)


# In float16 all scores are rounded: that one is no fault there.
@pytest.mark.parametrize("fault", [one for one in FAULTS if one != "float16 scores"])
def test_fault_is_refused_in_half_precision(fault: Fault, tmp_path: Path):
    write_routed(tmp_path / "package", fault)
    with pytest.raises(ValidationError, match=r"layer '?blocks\.1\.attn'"):
        moh_deploy.precision(tmp_path / "package", to="fp16", output=tmp_path / "half")


def test_kernels_are_judged_with_the_reference_gates_too(tmp_path: Path):
    required_library()
    write_routed(tmp_path / "package", "other tie order", tied=True)
    report = moh_deploy.verify(tmp_path / "package", kernels="require")
    report.raise_if_unequal()
    assert report.layers[1].forced
    write_routed(tmp_path / "wrong", "wrong scale")
    report = moh_deploy.verify(tmp_path / "wrong", kernels="require")
    assert "behind that of layer 'blocks.1.attn'" in str(report.failure)


def test_right_package_is_accepted(tmp_path: Path):
    write_routed(tmp_path / "package")
    report = moh_deploy.verify(tmp_path / "package", kernels="off")
    report.raise_if_unequal()
    assert report.notes == ()


# What these do is smaller than what rounding to 8 bits does: a package in float32 is refused.
BELOW_BFLOAT16 = {"float16 scores", "one gate off by 1 %", "wrong scale"}


@pytest.mark.parametrize("fault", [one for one in FAULTS if one not in BELOW_BFLOAT16])
def test_fault_is_refused_in_bfloat16(fault: Fault, tmp_path: Path):
    write_routed(tmp_path / "package", fault)
    with pytest.raises(ValidationError, match=r"layer,? '?blocks\.[12]\.attn'"):
        moh_deploy.precision(tmp_path / "package", to="bf16", output=tmp_path / "half")


@pytest.mark.parametrize("to", ["fp16", "bf16"])
def test_half_precision_is_accepted_and_judged_by_its_own_floor(to: str, tmp_path: Path):
    write_routed(tmp_path / "package", batch=20)
    moh_deploy.precision(tmp_path / "package", to=to, output=tmp_path / "half")
    report = moh_deploy.verify(tmp_path / "half", kernels="off")
    report.raise_if_unequal()
    judged = report.outputs[0]
    assert judged.floor is not None
    assert judged.tolerance == pytest.approx(3 * judged.floor)
    assert judged.max_abs_error < judged.floor


def test_another_order_of_ties_is_accepted_and_explained(tmp_path: Path):
    write_routed(tmp_path / "package", "other tie order", tied=True)
    report = moh_deploy.verify(tmp_path / "package", kernels="off")
    report.raise_if_unequal()
    middle = report.layers[1]
    assert middle.forced
    assert middle.excused_tokens > 0
    assert middle.free_flips is not None
    forced, free = report.outputs
    assert forced.max_abs_error < 1e-5 < free.max_abs_error
    assert free.tolerance is None


def test_another_number_of_threads_is_accepted(tmp_path: Path):
    package = write_routed(tmp_path / "package")
    runner = open_session(package, threads=2, extra_outputs=package.gate_names)
    variants = OrtVariants(package, threads=2)
    compare(package, runner, package.vectors, variants=variants).raise_if_unequal()
