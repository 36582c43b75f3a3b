"""Check that a package computes on the user's inputs what it did before it was chosen for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from moh_deploy.package import OnnxPackage, VectorSet
from moh_deploy.runtime.base import AS_IT_IS, Runner, Variant
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.system.npz import Array
from moh_deploy.validate.compare.parity import compare
from moh_deploy.validate.reference.input_sets import InputSet
from moh_deploy.validate.reference.samples import own_view
from moh_deploy.validate.reference.valid_tokens import TokenView


def check_same_outputs(
    before: OnnxPackage,
    after: OnnxPackage,
    runner: Runner,
    sets: Sequence[InputSet],
    variant: Variant = AS_IT_IS,
) -> dict[str, int]:
    """Compare outputs and gates, with the tolerances of `verify`.

    How close a tie is cannot be known without the original model. So a run in which a token chose
    other heads is not compared, but counted: what the package computes is proven by recorded runs.

    Args:
        before: The package as it was.
        after: The package as chosen.
        runner: A session of it that also returns the gates.
        sets: What to run.
        variant: How the package is opened as it was.

    Returns:
        Name of each set whose outputs were not compared, to how many tokens chose other heads.

    Raises:
        ValidationError: An output or a gate differs.
    """
    flipped: dict[str, int] = {}
    names = before.gate_names
    earlier = open_runner(before, variant.returning(names)) if sets else None
    for input_set in sets:
        assert earlier is not None
        # `runner` may choose other heads than `earlier` where scores are tied within rounding: a
        # sparse layer sums in another order than a dense one.
        expected = earlier.run(input_set.inputs)
        vectors = _vectors(before, input_set, expected)
        view = own_view(after.manifest, vectors, input_set.name)
        tokens = flipped_tokens(expected, runner.run(input_set.inputs), names, view)
        if tokens:
            flipped[input_set.name] = tokens
            continue
        reference = f"the package as it was, on {input_set.name}"
        compare(after, runner, [vectors], reference=reference).raise_if_unequal()
    return flipped


def flipped_tokens(
    first: Mapping[str, Array], second: Mapping[str, Array], names: Sequence[str], view: TokenView
) -> int:
    """Count the tokens that chose other heads, in all layers together.

    Args:
        first: Results of one package, gates among them.
        second: Those of another.
        names: Of the gates.
        view: Which tokens count.
    """
    first, second = view.select(first), view.select(second)
    # gates [..., H] to [...]: a token counts once, however many of its heads changed.
    differ = [((first[name] != 0) != (second[name] != 0)).any(axis=-1) for name in names]
    return int(sum(np.count_nonzero(tokens) for tokens in differ))


def _vectors(package: OnnxPackage, input_set: InputSet, results: Mapping[str, Array]) -> VectorSet:
    gates = tuple(results[name] for name in package.gate_names)
    return VectorSet(
        sizes=input_set.sizes,
        inputs=input_set.inputs,
        outputs={spec.name: results[spec.name] for spec in package.manifest.outputs},
        gates=gates,
        # Infinite margins say that no token was nearly tied, so `compare` excuses no other heads:
        # runs with flips do not get here. [B, S]
        margins=tuple(np.full(array.shape[:-1], np.inf, np.float32) for array in gates),
    )
