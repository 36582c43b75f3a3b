"""What static pruning kept, what that loses, and how much smaller the model became."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from moh_deploy.graph.narrowing import FixedHeads
from moh_deploy.report.document import Block, Document, Share, Table, Text
from moh_deploy.report.numbers import count, si
from moh_deploy.report.report import Report
from moh_deploy.validate.head_loads import HeadLoads
from moh_deploy.validate.parity_report import ParityReport


@dataclass(frozen=True)
class PrunedLayer:
    """One layer before and after.

    Attributes:
        path: Its path.
        num_heads: The heads that it had.
        fixed: Those that are left, with their gates.
        num_kv_heads: Key/value heads that its attention reads now; None where its operator has
            none.
        loads: How much each of its heads was used.
        notes: What became of keys and values, where that has to be said.
    """

    path: str
    num_heads: int
    fixed: FixedHeads
    num_kv_heads: int | None
    loads: HeadLoads
    notes: tuple[str, ...] = ()

    @property
    def lost_load(self) -> float:
        """Share of all open gates that were of heads that are gone."""
        return _lost(self.loads.load, self.fixed.kept)

    @property
    def lost_mass(self) -> float:
        """Share of the sum of all gates' absolute values that was of heads that are gone."""
        return _lost(self.loads.mass, self.fixed.kept)


@dataclass(frozen=True)
class ModelSize:
    """The size of a model.

    Attributes:
        parameters: Numbers that its stored floats are.
        flops: Twice the multiply-adds of products with weights, and of attention with all heads
            that there are, at the example's sizes; None where a size is not known.
    """

    parameters: int
    flops: int | None


@dataclass(frozen=True)
class PruneReport(Report):
    """A package that runs the same heads for every token.

    Attributes:
        package: The directory that was written.
        source: The package that it was made from.
        by: What heads were chosen by: `load` or `gate`.
        tokens: How many tokens were counted, in the layer that has most.
        layers: Every MoH layer.
        before: The size of the model that it was made from.
        after: Its own.
        parity: The comparison with the package that it was made from, the same gates fed to it.
    """

    package: Path
    source: Path
    by: str
    tokens: int
    layers: tuple[PrunedLayer, ...]
    before: ModelSize
    after: ModelSize
    parity: ParityReport

    def document(self) -> Document:
        """Return what it says."""
        kept = sum(len(layer.fixed.kept) for layer in self.layers)
        heads = sum(layer.num_heads for layer in self.layers)
        words = {"load": "how often they were open", "gate": "the sum of their gates"}[self.by]
        summary = f"{kept} of {count(heads, 'head')} kept by {words} over {self.tokens} tokens"
        columns = ("layer", "#heads", "kept", "#key/value heads", "#load lost", "#gates lost")
        blocks: list[Block] = [
            Text(f"{summary}; {self._sizes()}"),
            Table("layers", columns, list(map(_row, self.layers))),
            Text(
                "EQUAL to the package with these gates fed to it, within the rule for float32:"
                f" largest error {self.parity.max_abs_error:.3g}",
                True,
            ),
        ]
        notes = tuple(f"{layer.path}: {note}" for layer in self.layers for note in layer.notes)
        remarks = (
            f"It is another model than the original: --against {self.source} of `moh-deploy verify"
            f" {self.package} --inputs FILES --labels FILE` says what it loses.",
            f"written to {self.package}",
        )
        return Document("prune", tuple(blocks), findings=notes, remarks=remarks)

    def _sizes(self) -> str:
        before, after = self.before, self.after
        text = f"parameters: {si(before.parameters)} before, {si(after.parameters)} now"
        if before.flops is None or after.flops is None:
            return text
        flops = f"FLOP a run: {si(before.flops)} with all heads before, {si(after.flops)} now"
        return f"{text}; {flops}"


def _row(layer: PrunedLayer) -> tuple[str | int | Share | None, ...]:
    kept = ", ".join(map(str, layer.fixed.kept))
    return (
        layer.path,
        layer.num_heads,
        kept if layer.fixed.is_cut else f"{kept} (whole weights)",
        layer.num_kv_heads,
        Share(layer.lost_load),
        Share(layer.lost_mass),
    )


def _lost(used: tuple[float, ...], kept: tuple[int, ...]) -> float:
    total = sum(used)
    return 1 - sum(used[head] for head in kept) / total if total else 0.0
