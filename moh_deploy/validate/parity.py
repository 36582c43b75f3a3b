"""Compare a runtime with reference vectors: outputs, chosen heads, gates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from moh_deploy.backends.runner import Runner
from moh_deploy.npz import Array
from moh_deploy.package import OnnxPackage, VectorSet
from moh_deploy.validate.layer_parity import compare_layer, incomparable_layer
from moh_deploy.validate.output_parity import compare_output, incomparable_output
from moh_deploy.validate.parity_report import LayerParity, OutputParity, ParityReport
from moh_deploy.validate.tolerances import tolerance_for

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
    for index, expected in enumerate(vectors):
        label = _label(index, expected)
        got = runner.run(expected.inputs)
        outputs += _compare_outputs(package, expected, got, label, skip_absent=outputs_only)
        if not outputs_only:
            layers += _compare_layers(package, expected, got, label)
    impls = list(runner.layer_impl.values())
    return ParityReport(
        reference=reference,
        vector_sets=len(vectors),
        outputs=tuple(outputs),
        layers=tuple(layers),
        has_routing=not outputs_only,
        kernel_nodes=impls.count("kernel"),
        function_nodes=impls.count("function"),
    )


def _label(index: int, vectors: VectorSet) -> str:
    sizes = ", ".join(f"{dim}={size}" for dim, size in vectors.sizes.items())
    return f"{index} ({sizes})" if sizes else str(index)


def _compare_outputs(
    package: OnnxPackage,
    expected: VectorSet,
    got: Mapping[str, Array],
    label: str,
    *,
    skip_absent: bool,
) -> Iterator[OutputParity]:
    for name in (spec.name for spec in package.manifest.outputs):
        if name in expected.outputs:
            yield compare_output(
                name,
                label,
                got.get(name),
                expected.outputs[name],
                precision=package.manifest.precision,
            )
        elif not skip_absent:
            yield incomparable_output(name, label, f"output '{name}' is not in vectors {label}.")


def _compare_layers(
    package: OnnxPackage, expected: VectorSet, got: Mapping[str, Array], label: str
) -> Iterator[LayerParity]:
    tolerance = tolerance_for(package.manifest.precision)
    recorded = list(zip(expected.gates, expected.margins, strict=True))
    for index, layer in enumerate(package.manifest.layers):
        if index < len(recorded):
            gates, margins = recorded[index]
            yield compare_layer(layer.path, label, got.get(layer.gates), gates, margins, tolerance)
        else:
            reason = f"gates of layer '{layer.path}' are not in vectors {label}."
            yield incomparable_layer(layer.path, label, reason)
