"""Packages of a model in three precisions, and one whose kernels multiply bfloat16, made once and
kept in a directory.

What other sources made is not read again: a change of the exporter is what faults are planted in.
"""

import hashlib
import shutil
from contextlib import nullcontext
from dataclasses import replace
from functools import cache as once
from pathlib import Path
from typing import Literal, get_args
from unittest import mock

import onnx

import moh_deploy
from moh_deploy.frontend import export_package as pipeline
from moh_deploy.package import MODEL_NAME, LayerInfo, OnnxPackage, PackageWriter
from moh_deploy.runtime import lowered_package
from moh_deploy.runtime.lowered_package import largest_values, lowered
from moh_deploy.system.bounded_file import sha256_of
from moh_deploy.validate.compare.tolerances import BFLOAT16_PRODUCTS
from moh_deploy.validate.compare.verify_runs import proven
from tests import zoo
from tests.true_manifest import finish_true
from tests.validate.mutations import rotary, stacks
from tests.zoo import ZooModel

Precision = Literal["float32", "float16", "bfloat16", "bfloat16 products"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


def package_of(
    model: ZooModel, directory: Path, precision: Precision = "float32", *, opset: int | None = None
) -> OnnxPackage:
    """Return the package of a model from the directory, made now if it is not there."""
    name = model.name if opset is None else f"{model.name}.opset{opset}"
    root = directory / _sources_digest() / precision / name
    if not root.is_dir():
        root.parent.mkdir(parents=True, exist_ok=True)
        if precision == "float32":
            _export(model, root, opset)
        else:
            full = package_of(model, directory, opset=opset)
            write_package(full, root, onnx.load(full.model_path), precision=precision)
    return OnnxPackage.open(root)


def write_package(
    package: OnnxPackage,
    root: Path,
    model: onnx.ModelProto,
    *,
    precision: Precision = "float32",
    layers: tuple[LayerInfo, ...] | None = None,
) -> OnnxPackage:
    """Write a float32 package again with another model in it, and prove nothing.

    Args:
        package: What the model is a variant of: vectors and manifest are its own.
        root: Where to; what is there is replaced.
        model: In float32; it is lowered as `precision` does it where that is asked for. What is to
            stay in float32 is decided by the values of the package as it is.
        layers: Those of the manifest, where they differ.
    """
    shutil.rmtree(root, ignore_errors=True)
    layers = package.manifest.layers if layers is None else layers
    manifest = replace(package.manifest, layers=layers, proof=None)
    with PackageWriter(root) as writer:
        onnx.save(model, writer.path(MODEL_NAME))
        if precision == BFLOAT16_PRODUCTS:
            manifest = replace(manifest, compute_type="bfloat16")
        elif precision != "float32":
            full = replace(package, root=writer.root, manifest=manifest)
            known = _largest(package.root)
            with mock.patch.object(lowered_package, "largest_values", return_value=known):
                lower = lowered(full, precision, writer.root / precision)
            lower.model_path.replace(writer.path(MODEL_NAME))
            lower.root.rmdir()
            manifest = lower.manifest
        return finish_true(writer, manifest, package.vectors, package.corpus)


@once
def _largest(root: Path) -> dict[str, float]:
    return largest_values(OnnxPackage.open(root))


@once
def _sources_digest() -> str:
    """Return a digest of all that packages depend on: moh_deploy, and the models' own code."""
    folders = [Path(moh_deploy.__file__).parent, Path(zoo.__file__).parent]
    paths = sorted(path for folder in folders for path in folder.rglob("*.py"))
    paths += [Path(stacks.__file__), Path(rotary.__file__)]
    lines = [f"{path}\n{sha256_of(path)}" for path in paths]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _export(model: ZooModel, root: Path, opset: int | None) -> None:
    inputs = model.inputs()
    # Comparing in a fresh process each time would take longer than all else.
    with mock.patch.object(pipeline, "early_prover", return_value=nullcontext(proven)):
        moh_deploy.export(
            model.build(),
            root,
            inputs={each.name: each.value for each in inputs},
            dynamic=[
                f"{each.name}:" + ",".join(f"{axis}={dim}" for axis, dim in each.dims.items())
                for each in inputs
                if each.dims
            ],
            opset=opset,
        )
