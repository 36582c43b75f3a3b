"""Types of the manifest for measurements: proof, rounding, times."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from moh_deploy.config.strict_json import Strict

# A measured error may be NaN, which JSON can only spell as a string.
_NON_FINITE_ALLOWED = {"extra": "forbid", "ser_json_inf_nan": "strings"}


@dataclass(frozen=True)
class Spread(Strict):
    """The size of differences: their root mean square, and the largest of them."""

    rms: float
    largest: float


@dataclass(frozen=True)
class LayerRounding(Strict):
    """The distances that rounding moves the values of one layer.

    Attributes:
        scores: What its router ranks; None where that is not known.
        gates: Of chosen heads.
        attention: Its fingerprint, as a share of the root mean square of the values; `largest` is
            of a token. None where it is not known.
    """

    scores: Spread | None
    gates: Spread
    attention: Spread | None


@dataclass(frozen=True)
class Rounding(Strict):
    """The distances by which rounding moves the original, measured at the example's sizes.

    It ran with noise of one step of its dtype behind each operator, the gates of the original fed
    to every layer.

    Attributes:
        outputs: Of each output, as shares of its root mean square and of its largest value.
        layers: Of each layer, in the manifest's order.
    """

    outputs: dict[str, Spread]
    layers: tuple[LayerRounding, ...]


@dataclass(frozen=True)
class Proof(Strict):
    """The proof that a package equals the original, as the export measured it.

    Attributes:
        max_abs_error: Largest absolute difference of any output element over all vectors.
        routing_agreement: Share of (token, head) decisions that are equal, tokens with a near-tie
            left out; 1.0 without layers.
        sizes: The dimension sizes of each vector set, such as `({"batch": 2}, {"batch": 3})`.
    """

    __pydantic_config__ = _NON_FINITE_ALLOWED

    max_abs_error: float
    routing_agreement: float
    sizes: tuple[dict[str, int], ...]


@dataclass(frozen=True)
class Tuning:
    """The grounds of the layers' choices: measurements, or what somebody gave.

    Attributes:
        source: `measured` on a machine, or `given` by somebody.
        machine: Processor, cores and instruction set of that machine.
        runtime: Name and version of the runtime; None if nothing was measured.
        threads: Threads within an operator; None for the runtime's own choice.
        clock: `CPU` or `wall`: what the times are of; None if nothing was measured.
        sizes: The dimension sizes that it was measured at, one a set of inputs. Nothing is known of
            others.
        weights: How often each set of inputs counts.
        layer_ms: For each layer of the manifest and each set of inputs, choice to milliseconds;
            nothing for a layer without a choice.
        model_ms: For each set of inputs, `dense` (every layer), `chosen`, and, where layers have
            ranges, `one_choice` (without them) to milliseconds of the whole model; nothing where
            all layers were chosen to be dense before that was asked.
        within: The conditions under which the package was the fastest of several precisions and
            runtimes; nothing if there were none.
    """

    source: Literal["measured", "given"]
    machine: str
    runtime: str | None = None
    threads: int | None = None
    clock: str | None = None
    sizes: tuple[dict[str, int], ...] = ()
    weights: tuple[float, ...] = ()
    layer_ms: tuple[tuple[dict[str, float], ...], ...] = ()
    model_ms: tuple[dict[str, float], ...] = ()
    within: tuple[str, ...] = ()
