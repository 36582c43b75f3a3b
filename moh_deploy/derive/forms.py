"""The same model in another form: caches in place, standard operators only, another top_k."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from moh_deploy.errors import ConfigError, PackageError, ValidationError
from moh_deploy.graph.caches_in_place import put_caches_in_place
from moh_deploy.graph.change_top_k import change_top_k
from moh_deploy.graph.choose_layers import choose_layers, ops_of
from moh_deploy.graph.layer_reads import attention_values
from moh_deploy.graph.load_model import load_ir, to_standard_operators
from moh_deploy.package import (
    MODEL_DATA_NAME,
    MODEL_NAME,
    LayerInfo,
    Made,
    Manifest,
    OnnxPackage,
    PackageWriter,
    VectorSet,
    check_package_output,
    load_without_weights,
)
from moh_deploy.package.cache_buffers import in_buffers
from moh_deploy.package.onnx_file import save_with_weights
from moh_deploy.package.onnx_outline import ONNX_FILE, read_outline
from moh_deploy.report.document import Block, Document, Text
from moh_deploy.report.report import Report, count, si
from moh_deploy.runtime.base import Variant
from moh_deploy.system.bounded_file import sha256_of
from moh_deploy.system.progress import Progress, SilentProgress
from moh_deploy.system.replaceable import FileKind, check_file_output
from moh_deploy.system.staging import StagedDirectory
from moh_deploy.validate.compare.parity import compare_recorded, publish_if_equal, require_equal
from moh_deploy.validate.compare.parity_report import ParityReport
from moh_deploy.validate.reference.layer_values import Recorder, head_loads
from moh_deploy.validate.reference.samples import named_mask, recorded_samples, with_valid_tokens


@dataclass(frozen=True)
class InlineReport(Report):
    """A model in standard operators only.

    Attributes:
        weights: The file beside the model that holds its weights; None if they are inside.
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
        routing = parity.routing_agreement
        agreement = "" if routing is None else f", routing agreement {routing:.6g}"
        to = "of" if parity.in_few_bits else "to"
        runs = count(parity.vector_sets, "run")
        error = f"max abs error {parity.max_abs_error:.3g}"
        equal = f"{parity.answer} {to} the original on {runs}: {error}{agreement}"
        blocks: list[Block] = [Text(equal, True), Text(what)]
        if parity.kernels.emulated_dtype is not None:
            blocks.append(Text(parity.kernels.describe()))
        beside = "" if self.weights is None else f", weights in {self.weights}"
        return Document("inline", tuple(blocks), remarks=(f"written to {self.model}{beside}",))


def write_inlined(package: OnnxPackage, output: Path, progress: Progress) -> InlineReport:
    """Write a package's model in standard operators only; see `moh_deploy.inline`.

    Raises:
        ConfigError: The output is inside of the package, or what it was made from.
        PackageError: The output is there and no ONNX model, or an operator has no body.
        ValidationError: What was made differs from the original model. Nothing is written.
    """
    _check_replaceable(output, package)
    with progress.step("writing out the functions"):
        model = load_ir(package)
        layers = _as_plain_operators(package)
        to_standard_operators(model)
    with StagedDirectory(output) as staged:
        has_weights = MODEL_DATA_NAME in package.manifest.files
        weights = staged.output.with_name(f"{staged.output.name}.data")
        with progress.step("writing the model"):
            if has_weights:
                _require_text(weights.name)
                ir.save(model, staged.path / MODEL_NAME, external_data=weights.name)
            else:
                save_with_weights(model, staged.path / MODEL_NAME)
        with progress.step("comparing what was written with the original model"):
            # Only the model of the package changes: it has to give what was recorded.
            manifest = replace(package.manifest, layers=layers)
            written = replace(package, root=staged.path, manifest=manifest)
            parity = compare_recorded(written, Variant(kernels="off"))
            if parity.failure is not None:
                raise ValidationError(
                    f"the model in standard operators is {parity.failure.message}",
                    hint="`moh-deploy verify DIR --kernels off` tells whether the package itself is"
                    " equal.",
                )
        size = sum(file.stat().st_size for file in staged.path.iterdir())
        # The model comes last: its weights are there by then.
        placed = {weights.name: weights} if has_weights else {}
        staged.commit_files({**placed, MODEL_NAME: staged.output})
    return InlineReport(
        model=output,
        weights=output.with_name(weights.name) if has_weights else None,
        opset=model.opset_imports[""],
        operators=sum(1 for _ in model.graph.all_nodes()),
        bytes=size,
        parity=parity,
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


def _require_text(weights: str) -> None:
    try:
        weights.encode()
    except UnicodeEncodeError as error:
        raise PackageError(
            f"a model cannot refer to weights in '{weights}': names in ONNX are UTF-8.",
            hint="Call the output otherwise.",
        ) from error


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


def with_caches_in_place(
    model: ir.Model, manifest: Manifest, vectors: Sequence[VectorSet]
) -> tuple[Manifest, tuple[VectorSet, ...]]:
    """Change a model, and return what is to be said of it; nothing is compared.

    Args:
        model: Changed.
        manifest: What is said of it before.
        vectors: Recorded runs of the original.

    Raises:
        ConfigError: It has no caches that grow, or one that cannot be written in place.
    """
    caches = put_caches_in_place(model, manifest, vectors)
    manifest, runs = in_buffers(manifest, vectors, caches)
    choose_layers(model, manifest.layers)
    manifest = replace(manifest, ops=ops_of(model), opset=model.opset_imports[""])
    return manifest, runs


def write_caches_in_place(package: OnnxPackage, output: Path, progress: Progress) -> OnnxPackage:
    """Write a package again with its caches in place, proven equal to the original.

    Args:
        output: The package directory to write.

    Raises:
        ConfigError: It has no caches that grow, or one that cannot be written in place.
        ValidationError: The package, or the new one, is not equal to the original model.
    """
    with progress.step("comparing the package with the original model"):
        require_equal(package)
    with progress.step("putting the caches in place"):
        model = load_ir(package)
        manifest, vectors = with_caches_in_place(model, package.manifest, package.vectors)
    with PackageWriter(output) as writer:
        with progress.step("writing the package"):
            writer.save_model(model, package)
            manifest = writer.stage(manifest, vectors)
        with progress.step("comparing what was written with the original model"):
            written, _ = publish_if_equal(
                writer,
                manifest,
                name="the package with caches in place",
                hint="This is a fault of moh-deploy: --cache concatenated does without.",
            )
    return written


def with_top_k(
    package_dir: Path | str,
    output: Path | str,
    *,
    top_k: int | None,
    progress: Progress | None = None,
) -> OnnxPackage:
    """Write the package with another `top_k` in its routers; weights and choices stay.

    It is another model than the original. What it has recorded is of its own function bodies, which
    tells faults of kernels and of a runtime, and not whether the model is right.

    Args:
        package_dir: The package, of any precision but int8.
        output: The package directory to write.
        top_k: Routed heads that a token chooses; None for all of them, so that every head is open.
        progress: What to report steps to.

    Raises:
        ConfigError: The routers are of a form in which that is no attribute, or have fewer heads.
        PackageError: Not a package, or the output cannot be written.
        ValidationError: The package is not equal to its original, or what was made not to its
            function bodies. Nothing is written.
    """
    progress, output = progress or SilentProgress(), Path(output)
    check_package_output(output, made_of=Path(package_dir))
    with progress.step("reading the package"):
        package = OnnxPackage.open(package_dir)
        if package.manifest.precision == "int8":
            raise ConfigError(
                f"{package.root} is in int8, whose scales belong to the heads that it has.",
                hint="Change the float32 package, and bring that to int8.",
            )
        model = load_ir(package)
        layers = change_top_k(model, package.manifest.layers, top_k)
    with progress.step("comparing the package with its original model"):
        require_equal(package)
    how = "every head is open" if top_k is None else f"top_k is {top_k}"
    made = Made(how, package.manifest.files[MODEL_NAME])
    manifest = replace(
        package.manifest, layers=layers, proof=None, rounding=None, tuning=None, made=made
    )
    with PackageWriter(output) as writer:
        with progress.step("writing the package"):
            writer.save_model(model, package)
            changed = replace(package, root=writer.root, manifest=manifest, corpus=())
        with progress.step("recording its function bodies"):
            recorder = Recorder.of(changed)
            with recorder.runner:
                vectors = tuple(recorder.record(run.inputs) for run in package.vectors)
            # How many gates are open now, in these runs.
            runs, mask = recorded_samples(vectors), named_mask(manifest, None)
            runs = with_valid_tokens(runs, manifest, mask)
            loads = head_loads(replace(changed, vectors=vectors), runs)
            layers = tuple(
                replace(layer, active_share=sum(load.load) / layer.num_heads)
                for layer, load in zip(layers, loads, strict=True)
            )
            manifest = replace(manifest, layers=layers)
        staged = writer.stage(manifest, vectors)
        with progress.step("comparing what was written with that"):
            written, _ = publish_if_equal(writer, staged, name="the package with another top_k")
    return written
