"""Count which heads the samples of each class use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from moh_deploy.package import LayerInfo
from moh_deploy.system.npz import Array, BoolArray
from moh_deploy.validate.accuracy.class_labels import Labelling
from moh_deploy.validate.compare.routing_statistics import RoutingStatistics, class_load, joined

# More would be a table that nobody reads.
_MOST_CLASSES = 100


@dataclass
class ClassLoads:
    """Counts, batch by batch, for how many tokens of the samples of each class a head is on.

    Attributes:
        layers: Of the package.
        classes: Those that are counted.
        statistics: What was counted.
    """

    layers: Sequence[LayerInfo]
    classes: Array
    statistics: RoutingStatistics = field(default_factory=RoutingStatistics)

    def add(
        self, values: Mapping[str, Array], labels: Array, valid: BoolArray | None = None
    ) -> None:
        """Count a batch.

        Args:
            values: Name to array: the gates of each layer, [B, S, H], among others. A layer whose
                gates are not there, or of whose first axis counts windows, is left out.
            labels: [B], or what holds no classes.
            valid: Which tokens are no padding, [B, S]; None: all. A layer of other tokens counts
                all of its own.
        """
        if not self.classes.size:
            return
        # [B]: samples of classes that are counted.
        kept = np.isin(labels, self.classes)
        found = tuple(
            class_load(
                layer.path,
                layer.num_shared_heads,
                gates[kept],
                labels[kept],
                valid[kept] if valid is not None and valid.shape == gates.shape[:2] else None,
            )
            for layer in self.layers
            if (gates := values.get(layer.gates)) is not None and len(gates) == len(labels)
        )
        self.statistics = joined([self.statistics, RoutingStatistics(class_loads=found)])


def main_classes(labels: Sequence[Array], labelling: Labelling) -> Array:
    """Return the classes of all samples; of many, those with the most samples; none of tokens."""
    # Of labels for tokens, a class of the sample does not exist.
    if any(label.ndim != 1 or label.dtype.kind not in "iu" for label in labels):
        return np.empty(0, np.int64)
    # Signed: of unsigned labels the mark to be ignored would be a large number.
    every = np.concatenate(labels).astype(np.int64)
    found, counts = np.unique(every[every != labelling.ignore], return_counts=True)
    # Stable: of classes with equally many samples the lower numbers.
    return found[np.argsort(-counts, kind="stable")[:_MOST_CLASSES]]
