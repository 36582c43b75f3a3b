"""Write a package again in float16 or bfloat16."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from moh_deploy.backends.value_ranges import largest_values
from moh_deploy.errors import ConfigError, ValidationError
from moh_deploy.jobs.recorded_parity import compare_recorded, require_equal
from moh_deploy.package import (
    LayerInfo,
    Manifest,
    OnnxPackage,
    PackageWriter,
    Proof,
    RouterTypes,
    check_output,
    load_ir,
)
from moh_deploy.package.model_files import model_bytes, save_model
from moh_deploy.passes import choose_layers, without_switches
from moh_deploy.passes.infer_types import infer_types
from moh_deploy.passes.lower_precision import (
    LowType,
    PrecisionPlan,
    lower_precision,
    plan_precision,
)
from moh_deploy.progress import Progress, SilentProgress
from moh_deploy.report.precision import PrecisionReport
from moh_deploy.validate.parity_report import ParityReport

LOW_TYPES: Mapping[str, LowType] = {
    "fp16": "float16",
    "float16": "float16",
    "bf16": "bfloat16",
    "bfloat16": "bfloat16",
}


def precision(
    package_dir: Path | str,
    *,
    to: str,
    output: Path | str,
    progress: Progress | None = None,
) -> PrecisionReport:
    """Write a package whose graph says, by its types, where lower precision is used.

    Products run in the lower precision; the scores, softmax, choice and gates of routers, norms and
    other reductions stay in float32, and so does what left the range of float16 on the recorded
    inputs. Inputs and outputs of the model keep their dtypes.

    Args:
        package_dir: A package in float32.
        to: `fp16` or `bf16`.
        output: The package directory to write.
        progress: What to report steps to.

    Raises:
        ConfigError: `to` is none of these, or the package is not in float32.
        PackageError: Not a package, or the output cannot be written.
        ValidationError: The package, or the new one, differs from the original model by more than
            the rule for its precision allows. Nothing is written.
    """
    progress, output = progress or SilentProgress(), Path(output)
    low = _low_type(to)
    check_output(output)
    with progress.step("reading the package"):
        package = OnnxPackage.open(package_dir)
        check_float32(package)
    with progress.step("comparing the package with the original model"):
        require_equal(package)
    with progress.step("measuring how large values get"):
        largest = largest_values(package)
    with progress.step("lowering the precision"):
        model = load_ir(package)
        plan, layers = lower_model(model, package.manifest.layers, low, largest)
    with PackageWriter(output) as writer:
        with progress.step("writing the package"):
            save_model(model, package, writer.root)
            manifest = lowered_manifest(package, low, layers)
            manifest = writer.stage(manifest, package.vectors, package.corpus)
        with progress.step("comparing what was written with the original model"):
            staged = OnnxPackage.open(writer.root, staged=True)
            parity = _compare(staged, round_results=False)
            is_rounded = parity.kernels.emulated_dtype is not None
            rounded = parity if is_rounded else _compare(staged, round_results=True)
        written = writer.publish(replace(manifest, proof=proof_of(parity, package)))
    return PrecisionReport(
        package=written.root,
        precision=low,
        layers=layers,
        float32_reasons=Counter(_kind(reason, low) for reason in plan.float32.values()),
        lowered=sum(1 for node in model.graph if _computes_in(node, low)),
        bytes_before=model_bytes(package),
        bytes_after=model_bytes(written),
        parity=parity,
        rounded=rounded,
    )


def lower_model(
    model: ir.Model,
    layers: tuple[LayerInfo, ...],
    low: LowType,
    largest: Mapping[str, float],
) -> tuple[PrecisionPlan, tuple[LayerInfo, ...]]:
    """Lower a package's model in place.

    Returns:
        What each operator computes in, and the layers with the dtypes of their routers.
    """
    without_switches(model)
    infer_types(model)
    plan = plan_precision(model, low, largest, gates=frozenset(one.gates for one in layers))
    lower_precision(model, plan)
    choose_layers(model, layers)
    return plan, tuple(replace(one, router_types=router_types(model, one)) for one in layers)


def lowered_manifest(package: OnnxPackage, low: LowType, layers: tuple[LayerInfo, ...]) -> Manifest:
    """Return the manifest of a lowered package: what was measured in float32 says nothing of it."""
    return replace(package.manifest, precision=low, layers=layers, proof=None, rounding=None)


def router_types(model: ir.Model, layer: LayerInfo) -> RouterTypes:
    """Read from a model the dtypes of a layer's router."""
    values = {value.name: value for node in model.graph for value in node.outputs}
    gates = values[layer.gates]
    router = gates.producer()
    assert router is not None
    projections = {
        str(maker.outputs[0].dtype.numpy())
        for maker in map(_projection, router.inputs)
        if maker is not None and maker.outputs[0].dtype is not None
    }
    scores = next((v for v in router.inputs if v is not None and v.dtype is not None), gates)
    assert scores.dtype is not None
    assert gates.dtype is not None
    return RouterTypes(
        projection=projections.pop() if len(projections) == 1 else None,
        scores=str(scores.dtype.numpy()),
        gates=str(gates.dtype.numpy()),
    )


def _projection(value: ir.Value | None) -> ir.Node | None:
    """The product that made these logits, perhaps sliced, added to, reshaped or cast."""
    node = None if value is None else value.producer()
    while node is not None and node.op_type not in ("MatMul", "Gemm"):
        first = next((v for v in node.inputs if v is not None and not v.is_initializer()), None)
        node = None if first is None else first.producer()
    return node


def _low_type(to: str) -> LowType:
    if to not in LOW_TYPES:
        raise ConfigError(f"to is '{to}', expected fp16 or bf16.")
    return LOW_TYPES[to]


def lowered(package: OnnxPackage, to: str, root: Path) -> OnnxPackage:
    """Lower a float32 package into a scratch directory, and prove nothing.

    Returns:
        A package to open sessions of. It has no files but the model.
    """
    low = _low_type(to)
    model = load_ir(package)
    _, layers = lower_model(model, package.manifest.layers, low, largest_values(package))
    root.mkdir()
    save_model(model, package, root)
    manifest = lowered_manifest(package, low, layers)
    return replace(package, root=root, manifest=manifest)


def check_float32(package: OnnxPackage) -> None:
    """Refuse a package that was lowered.

    Raises:
        ConfigError: It is not in float32.
    """
    if package.manifest.precision != "float32":
        raise ConfigError(
            f"{package.root} is in {package.manifest.precision}, expected a package in float32.",
            hint="Export the model with --dtype float32 and lower that package.",
        )


def _compare(package: OnnxPackage, *, round_results: bool) -> ParityReport:
    """Compare the package with the original model.

    Args:
        round_results: As hardware computes, instead of as it runs here; see `open_session`.

    Raises:
        ValidationError: It is not equal.
    """
    report = compare_recorded(package, round_results=round_results)
    if report.failure is not None:
        how = " That is with every result rounded, as hardware does." if round_results else ""
        raise ValidationError(
            f"{report.failure.message}{how}",
            hint="`moh-deploy bisect DIR --to fp16|bf16 --output DIR` finds the operators that have"
            " to stay in float32, and writes the package with them.",
        )
    return report


def proof_of(parity: ParityReport, package: OnnxPackage) -> Proof:
    """Return what a comparison with all recorded runs of a package proves."""
    sizes = tuple(one.sizes for one in package.vectors)
    return Proof(parity.max_abs_error, parity.routing_agreement or 0.0, sizes)


def _kind(reason: str, low: LowType) -> str:
    """Reasons that name a value are of one kind."""
    return f"values too large for {low}" if " reached " in reason else reason


def _computes_in(node: ir.Node, low: LowType) -> bool:
    if node.op_type == "Cast":
        return False
    return any(value.dtype is not None and _name(value.dtype) == low for value in node.outputs)


def _name(dtype: ir.DataType) -> str:
    return str(dtype.numpy())
