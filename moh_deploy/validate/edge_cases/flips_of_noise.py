"""Tell whether rounding may be why tokens chose other heads, where nobody knows how near a tie is.

A router of plain operators shows no scores, so a flip has no margin to explain it. In lower
precision two runtimes round differently all the same, and in thousands of tokens some are tied.
How many may be is asked of the package itself: of how many tokens the choice changes while its
weights move by up to one step. No flip is excused by that: there is no data, and no failure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from moh_deploy.graph.forced_gates import computed_gates, forced_gates
from moh_deploy.package import OnnxPackage, VectorSet
from moh_deploy.validate.noise_floor import NOISE, NoisyModel
from moh_deploy.validate.parity_report import ParityReport
from moh_deploy.validate.parity_result import LayerParity
from moh_deploy.validate.variants import Variants


def flips_of_noise(
    package: OnnxPackage, variants: Variants | None, expected: VectorSet, report: ParityReport
) -> str | None:
    """Say that rounding may have made all that differs, or return None if it cannot be told.

    Args:
        package: The package, in lower precision; for one in float32 a flip stays a failure.
        variants: Opens it with gates fed to it, and with noise.
        expected: The run that it was compared with.
        report: The comparison. All that differs in it has to be heads of unknown margins, each
            layer having been given what the reference had seen.
    """
    layers = report.layers
    flipped = [layer for layer in layers if layer.reason is not None]
    if any(output.reason is not None for output in report.outputs) or not all(
        map(_is_unknown, flipped)
    ):
        return None
    if not flipped or variants is None or package.manifest.precision not in NOISE:
        return None
    moved = _moved_tokens(package, variants, expected)
    if moved is None or any(
        layer.flipped_tokens > most for layer, most in zip(layers, moved, strict=True)
    ):
        return None
    told = [
        f"{layer.flipped_tokens} in layer '{layer.path}', where noise of one step of"
        f" {package.manifest.precision} in the weights changes the choice of {most}"
        for layer, most in zip(layers, moved, strict=True)
        if layer.reason is not None
    ]
    return (
        f"no data: tokens choose other heads, {'; '.join(told)}. Their routers are of plain"
        " operators, so nobody knows whether these are ties; all else agrees."
    )


def _is_unknown(layer: LayerParity) -> bool:
    is_choice = layer.wrong == ("choice",) and layer.flip_margin is not None
    return layer.forced and is_choice and math.isinf(layer.flip_margin or 0.0)


def _moved_tokens(
    package: OnnxPackage, variants: Variants, expected: VectorSet
) -> Sequence[int] | None:
    """Count for each layer the tokens that choose other heads in the noisiest of some runs."""
    gates = dict(zip(package.gate_names, expected.gates, strict=True))
    types = {name: array.dtype for name, array in gates.items()}
    noisy = NoisyModel(variants, types, (), package.manifest.precision)
    # Fed with the reference's gates, so that no layer stands behind the flips of another.
    fed = {forced_gates(name): array for name, array in gates.items()}
    found = noisy.results({**expected.inputs, **fed})
    if found is None:
        return None
    names = [computed_gates(name) for name in package.gate_names]
    return [
        max(
            int(((arrays[name] != 0) != (found.exact[name] != 0)).any(axis=-1).sum())
            for arrays in found.drawn
        )
        for name in names
    ]
