"""Export models in tests, and compare packages with them."""

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from moh_deploy.config.options import ExportOptions
from moh_deploy.frontend import export_package as pipeline
from moh_deploy.frontend.export_report import ExportReport
from moh_deploy.frontend.fx.arrays import to_numpy
from moh_deploy.frontend.load.model import ModelInput
from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.validate.compare.tolerances import tolerance_for
from moh_deploy.validate.compare.verify_runs import proven
from tests.zoo.model import noise

INPUT = "x:[batch=2,seq=5,8]:float32"


def prove_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """One process for each proof would take longer than the rest; the command's tests do start
    them."""
    monkeypatch.setattr(pipeline, "early_prover", lambda: nullcontext(proven))


def export(model: nn.Module, output: Path, **options: object) -> ExportReport:
    """Export a model whose only input is `x`, unless the options say otherwise."""
    if "inputs" not in options:
        options = {"input_specs": (INPUT,), **options}
    return pipeline.export_package(ExportOptions(model, output, **options))


def run(root: Path, **inputs: np.ndarray) -> dict[str, np.ndarray]:
    return open_runner(OnnxPackage.open(root), Variant(kernels="off")).run(inputs)


def assert_package_equals(root: Path, module: nn.Module, inputs: tuple[ModelInput, ...]) -> None:
    """The package gives what the module gives, output by output."""
    with torch.no_grad():
        returned = module.eval()(*(item.value.clone() for item in inputs))
    expected = [to_numpy(leaf) for leaf in tree_leaves(returned) if isinstance(leaf, torch.Tensor)]
    got = run(root, **{item.name: to_numpy(item.value) for item in inputs})
    for output, reference in zip(got.values(), expected, strict=True):
        assert (output.shape, output.dtype) == (reference.shape, reference.dtype)
        exact, wide = (np.asarray(array, np.float64) for array in (reference, output))
        limit = tolerance_for(reference.dtype.name).limit(float(np.abs(exact).max()))
        assert np.abs(wide - exact).max() <= limit


def sizes_of_x(*shape: int) -> tuple[ModelInput, ...]:
    return (ModelInput("x", noise(*shape)),)


def assert_nothing_is_left(output: Path) -> None:
    assert list(output.parent.iterdir()) == []


SMALL_MOH_OPS = {"MoHAttention", "MoHRouter", "MoHQueryProjection", "MoHOutputProjection"}
