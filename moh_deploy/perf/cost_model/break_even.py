"""Predict from which batch size on, and up to which share of open heads, skipping heads pays.

By layer and for all layers together: against the layers as standard operators that compute every
head, as a model without routing runs. Routers are not counted: `bench --baseline fixed-routing`
measures what they cost.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from moh_deploy.graph.layer_nodes import LayerNodes
from moh_deploy.package import Choice, LayerInfo, choices_for
from moh_deploy.perf.cost_model.milliseconds import LayerShape, milliseconds
from moh_deploy.perf.cost_model.prediction import at_share, largest_share, shape_of


@dataclass(frozen=True)
class BreakEven:
    """Predicted times at one batch size."""

    batch: int  # the batch size
    ms: float  # with heads skipped, each layer as it is fastest
    all_open_ms: float  # the same with every head open
    dense_ms: float  # as standard operators
    # Share of open heads up to which `ms` would be below `dense_ms`; None where it never is.
    share: float | None

    @property
    def pays(self) -> bool:
        """Whether skipping heads is faster."""
        return self.ms < self.dense_ms


@dataclass(frozen=True)
class LayerBreakEven:
    """One layer, or all together, at several batch sizes."""

    path: str | None  # the layer; None for all together
    active_share: float  # its share of open heads
    sizes: tuple[BreakEven, ...]  # one for each batch size, ascending

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


_Known = tuple[LayerInfo, LayerShape, tuple[Choice, ...]]
"""A layer that something is predicted for, its sizes, and how it can be run."""


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
    ms = partial(milliseconds, instruction_set=instruction_set, threads=threads)
    known = [
        (layer, shape, choices)
        for layer, node in zip(layers, nodes, strict=True)
        if (shape := shape_of(layer, node)) is not None and (choices := choices_for(layer))
    ]

    def at(chosen: Sequence[_Known], batch: int) -> BreakEven:
        # Windows are samples of a layer's own: as many times as many.
        sized = [
            (replace(shape, batch=max(1, round(shape.batch * batch / example))), choices)
            for _, shape, choices in chosen
        ]

        def fastest(share: float | None) -> float:
            """Return the time with heads skipped, at a share of open heads or each layer's own."""
            total = 0.0
            for own, choices in sized:
                shape = own if share is None else at_share(own, share)
                total += min(ms(shape, choice) for choice in choices if choice != "dense")
            return total

        dense = sum(ms(shape, "dense") for shape, _ in sized)
        share = largest_share(lambda share: fastest(share) < dense)
        return BreakEven(batch, fastest(None), fastest(1.0), dense, share)

    def over(path: str | None, chosen: Sequence[_Known]) -> LayerBreakEven:
        heads = sum(shape.num_heads for _, shape, _ in chosen)
        open_heads = sum(shape.active_share * shape.num_heads for _, shape, _ in chosen)
        sizes = tuple(at(chosen, batch) for batch in sorted(set(batches)))
        return LayerBreakEven(path, open_heads / heads, sizes)

    alone = [over(entry[0].path, [entry]) for entry in known]
    return (*alone, *([over(None, known)] if known else []))
