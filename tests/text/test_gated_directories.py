"""Directories of ten Auto classes become packages without a word about their inputs.

The table of docs/huggingface.md has what they become.
"""

from pathlib import Path

import pytest
import torch
from torch.utils._pytree import tree_leaves

import moh_deploy
from moh_deploy.package import OnnxPackage
from tests.nightly import nightly
from tests.text.gated_directories import (
    DIRECTORIES,
    GatedDirectory,
    read_directory,
    write_gated_directory,
)

PAGE = Path(__file__).parents[2] / "docs" / "huggingface.md"


@pytest.fixture(autouse=True)
def needs_transformers():
    pytest.importorskip("transformers", reason="transformers is not installed")


@nightly
@pytest.mark.parametrize("case", DIRECTORIES, ids=lambda case: case.auto_class)
def test_directory_alone_becomes_a_package_of_all_layers(
    tmp_path: Path, case: GatedDirectory
) -> None:
    model = write_gated_directory(tmp_path / "model", case)
    report = moh_deploy.export(
        tmp_path / "model", tmp_path / "package", trust_code=True, require_layers="all"
    )
    package = OnnxPackage.open(report.package)
    by_shape: dict[str, list[str]] = {}
    for item in package.manifest.inputs:
        by_shape.setdefault(f"[{', '.join(map(str, item.shape))}]", []).append(item.name)
    inputs = "; ".join(f"{', '.join(names)} {shape}" for shape, names in by_shape.items())
    replaced = sum(layer.replaced for layer in report.layers)
    assert (inputs, replaced) == (case.inputs, case.layers)
    names, dims = (", ".join(each) for each in (package.vectors[0].inputs, package.manifest.dims))
    layers = f"{replaced} of {case.layers}"
    row = f"| `{case.auto_class}` | {case.architecture} | {names} | {dims} | {layers} |"
    assert row in PAGE.read_text().splitlines()

    # Weights that the file has by other names are those of the model, too.
    arrays = package.vectors[0].inputs
    arguments = {name: torch.from_numpy(array) for name, array in arrays.items()}
    read = read_directory(tmp_path / "model")
    with torch.no_grad():
        expected, got = (tree_leaves(each(**arguments).to_tuple()) for each in (model, read))
    tensors = [leaf for leaf in expected if isinstance(leaf, torch.Tensor)]
    assert tensors
    for tensor, other in zip(tensors, filter(torch.is_tensor, got), strict=True):
        assert torch.equal(tensor, other)
