"""Compute only some heads of a layer: nodes behind them again, on cut weights."""

from moh_deploy.graph.narrowing.layer_edit import FixedHeads, LayerEdit
from moh_deploy.graph.narrowing.narrowing import Narrowing, NotNarrowedError

__all__ = ["FixedHeads", "LayerEdit", "Narrowing", "NotNarrowedError"]
