"""Measure how far rounding moves the original: the floor that a package's error is judged by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.export import ExportedProgram
from torch.fx import Node

from moh_deploy.frontend.fx.arrays import to_numpy
from moh_deploy.frontend.prove.layer_values import attention_fingerprint
from moh_deploy.frontend.prove.noisy_run import NoisyRun, noisy_runs
from moh_deploy.frontend.prove.valid_elements import EVERYTHING, ValidElements
from moh_deploy.frontend.rewrite import Rewrite
from moh_deploy.package import (
    LayerRounding,
    Rounding,
    Spread,
    beside_masks,
    fingerprint_spread,
    spread,
)
from moh_deploy.system.npz import Array

_DRAWS = 3
"""Rounding that all of a model hangs on (of the frequencies of a timestep, say) is one number or a
few: one draw of it may be small by luck."""


def measure_rounding(
    program: ExportedProgram,
    placeholders: Sequence[object],
    rewrites: Sequence[Rewrite],
    values: Mapping[Node, torch.Tensor],
    outputs: Mapping[str, torch.Tensor],
    valid: ValidElements = EVERYTHING,
) -> Rounding:
    """Run the original operators with noise, and compare.

    Args:
        program: The original operators; what is inserted beside them is not run.
        placeholders: The values of the program's placeholders.
        rewrites: Its layers.
        values: What the original operators computed, by node.
        outputs: Its outputs, by name.
        valid: What of all values counts.
    """
    watched = {
        node
        for rewrite in rewrites
        for node in (rewrite.scores, rewrite.computed_gates, rewrite.attention_view)
        if node is not None
    }
    fed = {rewrite.computed_gates: values[rewrite.computed_gates] for rewrite in rewrites}
    runs = list(noisy_runs(program, placeholders, watched=watched, fed=fed, draws=_DRAWS))
    return Rounding(
        outputs={
            name: _output(
                tensor, [run.outputs[index] for run in runs], valid.of_output(name, tensor)
            )
            for index, (name, tensor) in enumerate(outputs.items())
            if tensor.is_floating_point()
        },
        layers=tuple(_layer(rewrite, values, runs, valid) for rewrite in rewrites),
    )


def _layer(
    rewrite: Rewrite,
    values: Mapping[Node, torch.Tensor],
    runs: Sequence[NoisyRun],
    valid: ValidElements,
) -> LayerRounding:
    scores, gates = rewrite.scores, rewrite.computed_gates
    chosen = to_numpy((values[gates] != 0) & valid.of_node(gates, values[gates]))
    exact = attention_fingerprint(rewrite, values)
    attention = None
    if exact is not None:
        found = [attention_fingerprint(rewrite, run.values) for run in runs]
        moved = np.stack([array - exact for array in found if array is not None])
        # [B, S] of [B, S, H]
        tokens = to_numpy(valid.of_node(rewrite.gates, values[rewrite.gates])[..., 0])
        attention = fingerprint_spread(_finite(moved[:, tokens]), _finite(exact[tokens]))
    return LayerRounding(
        scores=None
        if scores is None
        else spread(
            _moved(scores, values, runs)[:, to_numpy(valid.of_node(scores, values[scores]))]
        ),
        gates=spread(_moved(gates, values, runs)[:, chosen]),
        attention=attention,
    )


def _moved(node: Node, values: Mapping[Node, torch.Tensor], runs: Sequence[NoisyRun]) -> Array:
    """Return [runs, ...]: by how much each run moved a value."""
    exact = values[node].double()
    return _moves(exact, [run.values[node] for run in runs])[0]


def _finite(values: Array) -> NDArray[np.float64]:
    """Padding may be NaN, which says nothing about rounding."""
    return np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)


def _output(exact: torch.Tensor, noisy: Sequence[torch.Tensor], valid: torch.Tensor) -> Spread:
    """Return how far noise moves what counts of an output, as shares of its size."""
    exact, noisy = exact[valid], [run[valid] for run in noisy]
    moved, size = map(spread, _moves(exact.double(), noisy))
    return Spread(_share(moved.rms, size.rms), _share(moved.largest, size.largest))


def _moves(exact: torch.Tensor, noisy: Sequence[torch.Tensor]) -> tuple[Array, Array]:
    """Return [runs, ...], how far noise moves a value, and its size: see `beside_masks`."""
    moved = _finite(np.stack([to_numpy(run.double() - exact) for run in noisy]))
    return beside_masks(moved, to_numpy(exact))


def _share(error: float, value: float) -> float:
    return error / value if value else 0.0
