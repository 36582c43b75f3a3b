"""Predict from which batch size on, and up to which share of open heads, skipping heads pays.

By layer and for all layers together: against the layers as standard operators that compute every
head, as a model without routing runs. Routers are not counted: `bench --baseline fixed-routing`
measures what they cost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from moh_deploy.graph.layer_nodes import LayerNodes
from moh_deploy.package import Choice, LayerInfo, choices_for
from moh_deploy.perf.cost_model.milliseconds import LayerShape, milliseconds
from moh_deploy.perf.cost_model.prediction import at_share, shape_of


@dataclass(frozen=True)
class BreakEven:
    """Predicted times at one batch size.

    Attributes:
        batch: The batch size.
        ms: With heads skipped, each layer as it is fastest.
        all_open_ms: The same with every head open.
        dense_ms: As standard operators.
        share: Share of open heads up to which `ms` would be below `dense_ms`; None where it never
            is.
    """

    batch: int
    ms: float
    all_open_ms: float
    dense_ms: float
    share: float | None

    @property
    def pays(self) -> bool:
        """Whether skipping heads is faster."""
        return self.ms < self.dense_ms


@dataclass(frozen=True)
class LayerBreakEven:
    """One layer, or all together, at several batch sizes.

    Attributes:
        path: The layer; None for all together.
        active_share: Its share of open heads.
        sizes: One for each batch size, ascending.
    """

    path: str | None
    active_share: float
    sizes: tuple[BreakEven, ...]

    @property
    def pays_from(self) -> int | None:
        """The smallest batch size from which on it pays at every larger one; None where it does
        not pay at the largest."""
        found = None
        for size in reversed(self.sizes):
            if not size.pays:
                break
            found = size.batch
        return found


def break_even(
    layers: Sequence[LayerInfo],
    nodes: Sequence[LayerNodes],
    batches: Sequence[int],
    *,
    example: int,
    instruction_set: str | None,
    threads: int = 1,
) -> tuple[LayerBreakEven, ...]:
    """Predict where layers break even.

    Args:
        layers: The layers.
        nodes: Their operators.
        batches: Batch sizes.
        example: The batch size that the layers' own sizes are of.
        instruction_set: What kernels run on; None for AVX-512.
        threads: Threads within an operator.

    Returns:
        Each layer that something is predicted for, and last, if there are any, all of these
        together.
    """
    known = [_Layer.of(*pair) for pair in zip(layers, nodes, strict=True)]
    found = [layer for layer in known if layer is not None]

    def at(chosen: Sequence[_Layer], batch: int) -> BreakEven:
        sized = [layer.at_batch(batch, example) for layer in chosen]

        def total(ms: Callable[[_Layer], float]) -> float:
            return sum(map(ms, sized))

        def fastest(share: float | None) -> float:
            return total(lambda layer: layer.fastest(share, instruction_set, threads))

        dense = total(lambda layer: layer.ms("dense", layer.shape, instruction_set, threads))
        share = _largest_below(fastest, dense)
        return BreakEven(batch, fastest(None), fastest(1.0), dense, share)

    def over(path: str | None, chosen: Sequence[_Layer]) -> LayerBreakEven:
        heads = sum(layer.shape.num_heads for layer in chosen)
        open_heads = sum(layer.shape.active_share * layer.shape.num_heads for layer in chosen)
        sizes = tuple(at(chosen, batch) for batch in sorted(set(batches)))
        return LayerBreakEven(path, open_heads / heads, sizes)

    return (
        *(over(layer.path, [layer]) for layer in found),
        *([over(None, found)] if found else []),
    )


@dataclass(frozen=True)
class _Layer:
    """What is predicted for one layer.

    Attributes:
        choices: How it can be run.
    """

    path: str
    shape: LayerShape
    choices: tuple[Choice, ...]

    @classmethod
    def of(cls, layer: LayerInfo, nodes: LayerNodes) -> _Layer | None:
        shape, choices = shape_of(layer, nodes), choices_for(layer)
        return None if shape is None or not choices else cls(layer.path, shape, choices)

    def at_batch(self, batch: int, example: int) -> _Layer:
        # Windows are samples of a layer's own: as many times as many.
        samples = max(1, round(self.shape.batch * batch / example))
        return replace(self, shape=replace(self.shape, batch=samples))

    def ms(
        self, choice: Choice, shape: LayerShape, instruction_set: str | None, threads: int
    ) -> float:
        return milliseconds(shape, choice, instruction_set=instruction_set, threads=threads)

    def fastest(self, share: float | None, instruction_set: str | None, threads: int) -> float:
        """Return the time of the fastest choice with kernels, at its own share of open heads or
        another one."""
        shape = self.shape if share is None else at_share(self.shape, share)
        return min(
            self.ms(choice, shape, instruction_set, threads)
            for choice in self.choices
            if choice != "dense"
        )


def _largest_below(ms: Callable[[float], float], limit: float) -> float | None:
    """Search by halves the share up to which a time that rises with it is below a limit."""
    if ms(1.0) < limit:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(20):  # leaves 1e-6, finer than any report shows
        middle = (low + high) / 2
        low, high = (middle, high) if ms(middle) < limit else (low, middle)
    return low or None
