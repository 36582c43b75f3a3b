"""Write a package's model in standard operators only, proven equal to the original."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from moh_deploy.errors import ConfigError, PackageError, ValidationError
from moh_deploy.graph.layer_reads import attention_values
from moh_deploy.graph.load_model import load_ir, to_standard_operators
from moh_deploy.package import (
    MODEL_DATA_NAME,
    MODEL_NAME,
    LayerInfo,
    OnnxPackage,
    load_without_weights,
)
from moh_deploy.package.onnx_file import save_with_weights
from moh_deploy.package.onnx_outline import ONNX_FILE, read_outline
from moh_deploy.report.document import Block, Document, Text
from moh_deploy.report.numbers import count, si
from moh_deploy.report.report import Report
from moh_deploy.runtime.base import Variant
from moh_deploy.system.bounded_file import sha256_of
from moh_deploy.system.progress import Progress, SilentProgress
from moh_deploy.system.replaceable import FileKind, check_file_output
from moh_deploy.system.staging import StagedDirectory
from moh_deploy.validate.compare.parity import compare_recorded
from moh_deploy.validate.compare.parity_report import ParityReport

# What was written when a package's model was brought to standard operators.


@dataclass(frozen=True)
class InlineReport(Report):
    """A model in standard operators only.

    Attributes:
        model: The file that was written.
        weights: The file beside it that holds its weights; None if they are inside.
        opset: Version of the standard operators.
        operators: How many operators the model has now.
        bytes: Size of the model with its weights.
        parity: The comparison of the written model with the original, in ONNX Runtime without any
            library of kernels.
    """

    model: Path
    weights: Path | None
    opset: int
    operators: int
    bytes: int
    parity: ParityReport

    def document(self) -> Document:
        """Return what it says."""
        parity = self.parity
        what = (
            f"{count(self.operators, 'operator')}, all of ONNX's own opset {self.opset};"
            f" {si(self.bytes)}B with weights"
        )
        blocks: list[Block] = [Text(what)]
        if parity.kernels.emulated_dtype is not None:
            blocks.append(Text(parity.kernels.describe()))
        routing = parity.routing_agreement
        agreement = "" if routing is None else f", routing agreement {routing:.6g}"
        to = "of" if parity.is_in_integers else "to"
        runs = count(parity.vector_sets, "run")
        error = f"max abs error {parity.max_abs_error:.3g}"
        equal = f"{parity.answer} {to} the original on {runs}: {error}{agreement}"
        blocks.append(Text(equal, True))
        beside = "" if self.weights is None else f", weights in {self.weights}"
        return Document("inline", tuple(blocks), remarks=(f"written to {self.model}{beside}",))


def inline(
    package_dir: Path | str, *, output: Path | str, progress: Progress | None = None
) -> InlineReport:
    """Write the same model without functions and without any domain but ONNX's own.

    A package runs where a runtime knows ONNX's functions, which some do not. What is written here
    computes every head, and knows neither kernels nor layers: `verify` and all other commands work
    on the package. Opset, metadata and names of inputs and outputs stay; weights lie in a file
    beside the model, `OUTPUT.data`, where the package has them in one.

    Args:
        package_dir: The package, of any precision.
        output: The file to write, such as `model.onnx`. An earlier ONNX model is replaced.
        progress: What to report steps to.

    Raises:
        ConfigError: The output is inside of the package, or what the package was made from.
        PackageError: Not a package, the output cannot be written or is there and no ONNX model, or
            an operator is no standard one and has no body.
        ValidationError: What was made, run by ONNX Runtime without a library of kernels, differs
            from the original model on a recorded run. Nothing is written.
    """
    progress, output = progress or SilentProgress(), Path(output)
    _check_output(output, Path(package_dir))
    with progress.step("reading the package"):
        package = OnnxPackage.open(package_dir)
        _check_replaceable(output, package)
    with progress.step("writing out the functions"):
        model = load_ir(package)
        layers = _as_plain_operators(package)
        to_standard_operators(model)
    with StagedDirectory(output) as staged:
        target = staged.output
        weights = target.with_name(f"{target.name}.data")
        with progress.step("writing the model"):
            has_weights = _save(model, package, staged.path, weights.name)
        with progress.step("comparing what was written with the original model"):
            # It is the package still, but for its model: what was recorded is what it has to give.
            manifest = replace(package.manifest, layers=layers)
            parity = _compare(replace(package, root=staged.path, manifest=manifest))
        size = sum(file.stat().st_size for file in staged.path.iterdir())
        # The model comes last: there is none whose weights are still to come.
        placed = {weights.name: weights} if has_weights else {}
        staged.commit_files({**placed, MODEL_NAME: target})
    return InlineReport(
        model=output,
        weights=output.with_name(weights.name) if has_weights else None,
        opset=model.opset_imports[""],
        operators=sum(1 for _ in model.graph.all_nodes()),
        bytes=size,
        parity=parity,
    )


def _check_output(output: Path, package_dir: Path) -> None:
    # A package is replaced as a whole, and holds what its manifest lists: its own model, above all.
    if package_dir.resolve() in output.resolve().parents:
        raise ConfigError(
            f"output is {output}, inside of the package {package_dir}, which holds nothing else.",
            hint="Name a file outside of it.",
        )
    if os.path.isdir(output):
        raise PackageError(
            f"{output} is a directory, expected a file to write the model to.",
            hint=f"Name the file: --output {output / MODEL_NAME}",
        )


def _check_replaceable(output: Path, package: OnnxPackage) -> None:
    if not os.path.isfile(output):
        refers: frozenset[str] = frozenset()
    else:
        check_file_output(output, ONNX_FILE)
        if sha256_of(output) == package.manifest.checkpoint_sha256:
            raise ConfigError(
                f"output is {output}, which {package.root} was made from: it would be lost.",
                hint="Name another file.",
            )
        refers = frozenset(
            external_tensor.entries.get("location", "") for external_tensor in read_outline(output)
        )
    weights = output.with_name(f"{output.name}.data")
    if MODEL_DATA_NAME in package.manifest.files and os.path.isfile(weights):
        kind = FileKind(f"file of weights of {output}", lambda path: path.name in refers)
        check_file_output(weights, kind)


def _as_plain_operators(package: OnnxPackage) -> tuple[LayerInfo, ...]:
    """Return the layers as of a model whose attention and routers are ordinary operators."""
    layers, graph = package.manifest.layers, load_without_weights(package.model_path).graph
    # Inner values keep their names, so they are compared as they are in the package.
    return tuple(
        replace(
            layer,
            node=None,
            query_projection=None,
            output_projection=None,
            op=None,
            choice=None,
            ranges=(),
            attention=attention,
        )
        for layer, attention in zip(layers, attention_values(graph, layers), strict=True)
    )


def _save(model: ir.Model, package: OnnxPackage, root: Path, weights: str) -> bool:
    """Write the model, and return whether its weights lie beside it."""
    if MODEL_DATA_NAME not in package.manifest.files:
        save_with_weights(model, root / MODEL_NAME)
        return False
    try:
        weights.encode()
    except UnicodeEncodeError as error:
        raise PackageError(
            f"a model cannot refer to weights in '{weights}': names in ONNX are UTF-8.",
            hint="Call the output otherwise.",
        ) from error
    ir.save(model, root / MODEL_NAME, external_data=weights)
    return True


def _compare(package: OnnxPackage) -> ParityReport:
    """Compare with the original model.

    Raises:
        ValidationError: It is not equal.
    """
    report = compare_recorded(package, Variant(kernels="off"))
    if report.failure is not None:
        raise ValidationError(
            f"the model in standard operators is {report.failure.message}",
            hint="`moh-deploy verify DIR --kernels off` tells whether the package itself is equal.",
        )
    return report
