"""Compare a runtime with reference vectors: outputs, chosen heads, gates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from moh_deploy.backends.runner import Runner
from moh_deploy.npz import Array
from moh_deploy.package import OnnxPackage, VectorSet
from moh_deploy.validate.layer_parity import compare_layer, incomparable_layer
from moh_deploy.validate.output_parity import compare_output, incomparable_output
from moh_deploy.validate.parity_report import LayerParity, OutputParity, ParityReport
from moh_deploy.validate.tolerances import BFLOAT16_PRODUCTS, Tolerance, coarsest, tolerance_for

RECORDED = "vectors recorded from the original model"


def compare(
    package: OnnxPackage,
    runner: Runner,
    vectors: Sequence[VectorSet],
    *,
    reference: str = RECORDED,
    outputs_only: bool = False,
) -> ParityReport:
    """Run every vector set and compare outputs, chosen heads and gates with it.

    Args:
        package: Says which outputs and layers there are.
        runner: A session of it that also returns the values `package.gate_names`.
        vectors: What to run, and what to expect.
        reference: Where the expected values come from, for the report.
        outputs_only: The vectors hold no gates, and maybe not every output: compare what they hold.

    Raises:
        ConfigError: The vectors' inputs do not fit the model.
        BackendError: The runtime failed.
    """
    outputs: list[OutputParity] = []
    layers: list[LayerParity] = []
    rule = _model_rule(package, runner)
    for index, expected in enumerate(vectors):
        label = _label(index, expected)
        got = runner.run(expected.inputs)
        routed = [] if outputs_only else list(_compare_layers(package, expected, got, label, rule))
        # Without gates a flip cannot be seen, so there may be some.
        flips = outputs_only or any(layer.excused_tokens for layer in routed)
        output_rule = rule.after_flip() if flips else rule
        outputs += _compare_outputs(
            package, expected, got, label, output_rule, skip_absent=outputs_only
        )
        layers += routed
    impls = list(runner.layer_impl.values())
    return ParityReport(
        reference=reference,
        vector_sets=len(vectors),
        outputs=tuple(outputs),
        layers=tuple(layers),
        has_routing=not outputs_only,
        kernel_nodes=impls.count("kernel"),
        function_nodes=impls.count("function"),
        layer_runs=runner.layer_runs,
        kernels=runner.kernels,
    )


def _model_rule(package: OnnxPackage, runner: Runner) -> Tolerance:
    """Return the rule for the model's precision and for what its kernels compute in."""
    rules = [tolerance_for(package.manifest.precision)]
    on_kernels = "kernel" in runner.layer_impl.values()
    if on_kernels and runner.kernels.compute_type == "bfloat16":
        rules.append(tolerance_for(BFLOAT16_PRODUCTS))
    return coarsest(*rules)


def _output_rule(dtype: str, model_rule: Tolerance) -> Tolerance:
    """Return the coarser one: logits cast to float32 still carry the rounding of the model."""
    rule = tolerance_for(dtype)
    return coarsest(rule, model_rule) if "float" in dtype else rule


def _label(index: int, vectors: VectorSet) -> str:
    sizes = ", ".join(f"{dim}={size}" for dim, size in vectors.sizes.items())
    return f"{index} ({sizes})" if sizes else str(index)


def _compare_outputs(
    package: OnnxPackage,
    expected: VectorSet,
    got: Mapping[str, Array],
    label: str,
    model_rule: Tolerance,
    *,
    skip_absent: bool,
) -> Iterator[OutputParity]:
    for name in (spec.name for spec in package.manifest.outputs):
        if name in expected.outputs:
            reference = expected.outputs[name]
            rule = _output_rule(reference.dtype.name, model_rule)
            yield compare_output(name, label, got.get(name), reference, rule)
        elif not skip_absent:
            yield incomparable_output(name, label, f"output '{name}' is not in vectors {label}.")


def _compare_layers(
    package: OnnxPackage,
    expected: VectorSet,
    got: Mapping[str, Array],
    label: str,
    rule: Tolerance,
) -> Iterator[LayerParity]:
    recorded = list(zip(expected.gates, expected.margins, strict=True))
    for index, layer in enumerate(package.manifest.layers):
        if index < len(recorded):
            gates, margins = recorded[index]
            entry = compare_layer(layer.path, label, got.get(layer.gates), gates, margins, rule)
            yield entry
            rule = rule.after_flip() if entry.excused_tokens else rule
        else:
            reason = f"gates of layer '{layer.path}' are not in vectors {label}."
            yield incomparable_layer(layer.path, label, reason)
