"""The values of the original model that a package has on record, and where a run computes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from moh_deploy.graph.forced_gates import computed_gates
from moh_deploy.package import LayerInfo, VectorSet
from moh_deploy.system.npz import Array
from moh_deploy.validate.reference.differences import abs_error, largest
from moh_deploy.validate.reference.layer_values import LayerValues

Read = Callable[[Array], Array | None]
"""From a value of a run to what was recorded of it; None where it is of another form."""


@dataclass(frozen=True)
class RecordedValue:
    """One value of one recorded run.

    Attributes:
        what: `output 'y'`, or `router of 'blocks.0.attn'`.
        value: Its name in the graph that has gates fed to it.
        expected: What the original computed.
        layer: Path of the layer whose gates these are; None for what chooses no heads.
        margins: How clear each token's choice is, [B, S], of gates.
        scores: What their router ranked, see `VectorSet.scores`; None if it is not known.
        num_shared_heads: Of gates, as in `LayerInfo`.
        read: What is to be done with the run's value before it is compared.
        inner: It is neither gates nor an output: a session has to be asked for it.
        gates: The name of the gates whose tokens it has, of an inner value.
    """

    what: str
    value: str
    expected: Array
    layer: str | None = None
    margins: Array | None = None
    scores: Array | None = None
    num_shared_heads: int | None = None
    read: Read = lambda value: value
    inner: bool = False
    gates: str | None = None

    def of(self, got: Mapping[str, Array]) -> Array | None:
        """Return it as a run computed it; None if the run did not."""
        made = got.get(self.value)
        if made is None:
            return None
        # Variants may compute gates in another dtype than the recorded ones: that is no mismatch.
        return self.read(made if self.layer is None else made.astype(self.expected.dtype))

    def drift(self, got: Array | None, expected: Array) -> float | None:
        """Return the largest difference of two runs where none of them jumps.

        Another choice of heads moves gates by a jump, however small its cause is: tokens that
        choose other heads do not count. Integers only jump.

        Returns:
            The largest difference; None where there is nothing to take it from.
        """
        # Integers and booleans only jump.
        if got is None or got.shape != expected.shape or expected.dtype.kind in "biu":
            return None
        error = abs_error(got, expected)
        if self.layer is not None:
            # [tokens, H] of the tokens that chose the same heads.
            error = error[((got != 0) == (expected != 0)).all(axis=-1)]
        return largest(error) if error.size else None


def recorded_values(
    layers: Sequence[LayerInfo], vectors: VectorSet, shown: Sequence[LayerValues] = ()
) -> Iterator[RecordedValue]:
    """Yield what was recorded of one run, in the order in which it is computed.

    Every value that is yielded is compared, and bounds the place of a fault.

    Args:
        layers: In the order in which they run; none where their gates are not fed.
        vectors: The run.
        shown: Where the inner values of each layer are; empty to leave them out.
    """
    # Packages of earlier versions have no scores.
    scores = vectors.scores or (None,) * len(layers)
    recorded = zip(layers, vectors.gates, vectors.margins, scores, strict=False)
    # In the order in which a layer computes: scores, gates, attention.
    for index, (layer, gates, margins, ranked) in enumerate(recorded):
        values, tokens = shown[index] if shown else None, gates.shape[:2]
        if values is not None and values.logits is not None and ranked is not None:
            read = partial(_scores, values, tokens)
            what = f"scores of '{layer.path}'"
            yield RecordedValue(
                what, values.logits, ranked, read=read, inner=True, gates=layer.gates
            )
        yield RecordedValue(
            f"router of '{layer.path}'",
            computed_gates(layer.gates),
            gates,
            layer.path,
            margins,
            ranked,
            layer.num_shared_heads,
        )
        attention = vectors.attention[index] if vectors.attention else None
        if values is not None and values.attention is not None and attention is not None:
            read = partial(_fingerprint, values, tokens)
            what = f"attention of '{layer.path}'"
            yield RecordedValue(
                what, values.attention, attention, read=read, inner=True, gates=layer.gates
            )
    for name, expected in vectors.outputs.items():
        yield RecordedValue(f"output '{name}'", name, expected)


def _scores(values: LayerValues, tokens: tuple[int, ...], logits: Array) -> Array | None:
    assert values.logits is not None
    return values.scores({values.logits: logits}, tokens)


def _fingerprint(values: LayerValues, tokens: tuple[int, ...], attention: Array) -> Array | None:
    assert values.attention is not None
    return values.fingerprint({values.attention: attention}, tokens)
