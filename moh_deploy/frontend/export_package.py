"""Export a PyTorch checkpoint or an ONNX file to a package that is proven equal to it."""

import platform
import shutil
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import onnx_ir as ir

from moh_deploy import __version__, package
from moh_deploy.config.dtypes import ComputeType
from moh_deploy.config.export_config import ExportConfig
from moh_deploy.config.options import ExportOptions, RequiredLayers
from moh_deploy.derive.forms import with_caches_in_place
from moh_deploy.errors import ExportError, ValidationError
from moh_deploy.frontend.convert import Converted, convert
from moh_deploy.frontend.emit import DEFAULT_OPSET
from moh_deploy.frontend.export_report import ExportReport
from moh_deploy.frontend.inputs.example_inputs import decoder_outputs, example_inputs
from moh_deploy.frontend.load.decoder import text_generation
from moh_deploy.frontend.load.load import load
from moh_deploy.graph.choose_layers import choose_layers, ops_of
from moh_deploy.native import kernel_library
from moh_deploy.ops.spec import MIN_OPSET
from moh_deploy.package.before_export import check_export
from moh_deploy.package.facts import with_shown
from moh_deploy.package.model_facts import model_facts
from moh_deploy.package.onnx_file import save_with_weights
from moh_deploy.perf.cost_model.first_choices import first_choices
from moh_deploy.perf.cost_model.milliseconds import Platform
from moh_deploy.report.report import count
from moh_deploy.runtime.kernel_use import choose_kernels
from moh_deploy.runtime.layers_text import not_layers, reasons
from moh_deploy.system.progress import SilentProgress
from moh_deploy.system.user_code import user_code
from moh_deploy.validate.compare.verify_runs import Prove, Way, early_prover


def require_layers(
    wanted: RequiredLayers | None,
    layers: Sequence[package.LayerInfo],
    near_misses: Sequence[package.NearMiss],
) -> None:
    """Check that enough layers were replaced.

    Args:
        wanted: At least so many; `all` for all that were recognised, 1 or more, with no near miss
            beside them.

    Raises:
        ExportError: Fewer were, or something was not; says what, and where it was lost.
    """
    kept = [layer for layer in layers if not layer.replaced]
    replaced = len(layers) - len(kept)
    # A gate must not pass on a model in which recognition finds no layer.
    whole = replaced > 0 and not kept and not near_misses
    if whole if wanted == "all" else replaced >= (wanted or 0):
        return
    expected = "all, 1 or more, and no near miss" if wanted == "all" else f"at least {wanted}"
    raise ExportError(
        "\n".join(
            [
                f"{count(replaced, 'MoH layer')} of {len(layers)} became operators, expected"
                f" {expected} (require_layers).",
                *reasons(kept),
                *not_layers(len(layers), near_misses, 0, {}),
            ]
        ),
        hint="Change what is named above, or require fewer layers; --require-layers 0 takes a model"
        " without any.",
    )


# A protobuf message holds 2 GB at most: larger weights go into a file of their own.
EXTERNAL_DATA_BYTES = 1 << 30


def export_package(
    options: ExportOptions, *, progress: SilentProgress | None = None
) -> ExportReport:
    """Export a model: load, trace, recognise, rewrite, translate, prove, write.

    Args:
        options: What to export, and where to.
        progress: What to report the steps to.

    Returns:
        What was written and how well it agrees with the original.

    Raises:
        MoHDeployError: With the exit code of the kind of failure. Nothing is left behind.
    """
    progress = progress or SilentProgress()
    config = check_export(options)
    # The process that is to compare imports what it needs while the model is traced here.
    with early_prover() as prove:
        return _export(options, config, prove, progress)


def _export(
    options: ExportOptions,
    config: ExportConfig,
    prove: Prove,
    progress: SilentProgress,
) -> ExportReport:
    converted, source = _convert(options, config, progress)
    require_layers(config.require_layers, converted.layers, converted.found.near_misses)
    # Each layer runs as is predicted to be the fastest: here, or where there are kernels. Without
    # a library AVX-512 is assumed, the only one that costs were measured on.
    kernels = choose_kernels("auto", compute_type=config.compute_type)
    layers = first_choices(
        converted.model,
        converted.layers,
        platform=Platform(kernels.instruction_set, compute_type=kernels.compute_type),
        dims=converted.dims,
        dim_ranges=converted.dim_ranges,
    )
    choose_layers(converted.model, layers)
    manifest = _manifest(replace(converted, layers=layers), source, config.compute_type)
    vectors = converted.vectors
    if options.cache == "in-place":
        with progress.step("putting the caches in place"):
            manifest, vectors = with_caches_in_place(converted.model, manifest, vectors)
    with package.PackageWriter(options.output) as writer:
        with progress.step("writing the package"):
            # Weights are most of a package: better refused now than with a full disk.
            values = converted.model.graph.initializers.values()
            size = sum(
                value.const_value.nbytes for value in values if value.const_value is not None
            )
            writer.require_free(size)
            path = writer.path(package.MODEL_NAME)
            if size > EXTERNAL_DATA_BYTES:
                ir.save(converted.model, path, external_data=package.MODEL_DATA_NAME)
            else:
                save_with_weights(converted.model, path)
            model = package.load_without_weights(path)
            # A router may be told by its operators as another form than by its code.
            forms = [fact for fact in model_facts(manifest, model) if fact.name == "router"]
            manifest = with_shown(manifest, forms)
            for file in source.carried:
                shutil.copyfile(file, writer.path(file.name))
            manifest = writer.stage(manifest, vectors)
        sizes = tuple(vector_set.sizes for vector_set in vectors)
        padding_inputs = converted.padding_inputs
        limits, unnamed, remedy = converted.limits, converted.unnamed, converted.remedy
        # Its weights would stay in memory while another process loads what was written.
        del converted, vectors
        # By function bodies, and by kernels where there are any; these at the example's sizes only:
        # what they compute at all sizes is not the package's matter.
        ways = [Way("auto")]
        if manifest.ops and kernel_library() is not None:
            ways = [Way("off"), Way("auto", vectors=1)]
        with progress.step("comparing the package with the original model"):
            try:
                runs = prove(writer.root, ways)
            except ValidationError as error:
                raise ValidationError(error.message, hint=error.hint or remedy) from error
        # What any runtime computes, with kernels or without, is the function bodies' result.
        proof = package.Proof(runs[0].max_abs_error, runs[0].routing_agreement, sizes)
        written = writer.publish(replace(manifest, proof=proof))
    return ExportReport(
        package=written.root,
        layers=manifest.layers,
        kept=manifest.kept,
        near_misses=manifest.near_misses,
        other_routers=manifest.other_routers,
        ungated=manifest.ungated,
        other_gates=manifest.other_gates,
        inputs=manifest.inputs,
        outputs=manifest.outputs,
        max_abs_error=proof.max_abs_error,
        routing_agreement=proof.routing_agreement,
        vector_sets=len(proof.sizes),
        runs=runs,
        valid_tokens=manifest.valid_tokens,
        valid_tokens_found=manifest.valid_tokens in padding_inputs,
        padding_inputs=padding_inputs,
        dim_ranges=manifest.dim_ranges,
        limits=limits,
        unnamed=unnamed,
        caches=manifest.caches,
        seconds=progress.seconds,
    )


class _Source(NamedTuple):
    """The source of a package: facts about the original, and files to bring along."""

    sha256: str | None
    text_generation: package.TextGeneration | None
    carried: tuple[Path, ...]


def _convert(
    options: ExportOptions, config: ExportConfig, progress: SilentProgress
) -> tuple[Converted, _Source]:
    with progress.step("loading the model"):
        has_inputs = options.inputs is not None or options.input_specs or config.inputs
        model = load(
            options.model,
            config.model,
            task=options.task,
            dtype=options.dtype,
            trust_pickle=options.trust_pickle,
            trust_code=options.trust_code,
            needs_example=not has_inputs,
        )
        model, inputs = example_inputs(
            model,
            config,
            npz=options.inputs,
            specs=options.input_specs,
            dynamic=options.dynamic,
        )
    # The names and operator set that an ONNX file, or a task, has.
    original = None if model.original is None else model.original.source
    own_names = () if original is None else original.outputs
    if model.decoder is not None:
        own_names = decoder_outputs(model.decoder)
    # Bodies can be written from MIN_OPSET on.
    own_opset = DEFAULT_OPSET if original is None else max(original.opset, MIN_OPSET)
    # Tracing runs the model, which may import more of the user's code.
    with user_code(config.model.code_dirs):
        converted = convert(
            model,
            inputs,
            names=config.outputs or own_names,
            opset=options.opset or own_opset,
            find_padding=config.valid_tokens is None,
            progress=progress,
        )
    # The model itself goes: its weights would stay in memory.
    return converted, _Source(
        model.checkpoint_sha256,
        text_generation(model.decoder, model.directory),
        () if model.directory is None else model.directory.carried,
    )


def _manifest(
    converted: Converted,
    source: _Source,
    compute_type: ComputeType,
) -> package.Manifest:
    return package.Manifest(
        inputs=converted.inputs,
        outputs=converted.outputs,
        dims=converted.dims,
        layers=converted.layers,
        ops=ops_of(converted.model),
        opset=converted.model.opset_imports[""],
        total_flops=converted.total_flops,
        precision=converted.precision,
        kept=converted.kept,
        near_misses=converted.found.near_misses,
        other_routers=converted.found.other_routers,
        ungated=converted.found.ungated,
        other_gates=dict(converted.found.other_gates),
        rounding=converted.rounding,
        call=converted.call,
        valid_tokens=converted.valid_tokens,
        new_tokens=converted.new_tokens,
        dim_ranges=converted.dim_ranges,
        dim_sums=converted.dim_sums,
        compute_type=compute_type,
        text_generation=source.text_generation,
        checkpoint_sha256=source.sha256,
        made_with={
            "moh-deploy": __version__,
            "torch": version("torch"),
            "onnx": version("onnx"),
            "python": platform.python_version(),
            **({"onnxruntime": version("onnxruntime")} if converted.from_onnx else {}),
        },
    )
