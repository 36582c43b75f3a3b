"""The part of a run that is scored: outputs of both sides and labels, without padding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from moh_deploy.system.npz import Array, BoolArray
from moh_deploy.validate.valid_tokens import ValidTokens


@dataclass(frozen=True)
class Scored:
    """One run.

    Attributes:
        reference: Name to array, [B, ...], for the outputs that the reference has.
        package: The same of the package, for all outputs.
        labels: [B, ...].
    """

    reference: Mapping[str, Array]
    package: Mapping[str, Array]
    labels: Array

    def of_valid(self, valid: ValidTokens | None, ignore: int) -> Scored:
        """Return it with labels of padding ignored, and 0 for what is computed there: NaN, maybe.

        Args:
            valid: Which tokens count; None: all.
            ignore: What labels are that do not count.
        """
        if valid is None:
            return self
        # Without the copies that fill up a batch, which have no labels.
        mask = valid.mask[: len(self.labels)]
        is_of_tokens = self.labels.shape == mask.shape and self.labels.dtype.kind in "iu"
        return Scored(
            # Zeros on both sides: NaN at padding would leave the whole sample without a score.
            _blanked(self.reference, valid.mask),
            _blanked(self.package, valid.mask),
            np.where(mask, self.labels.astype(np.int64), ignore) if is_of_tokens else self.labels,
        )


def _blanked(outputs: Mapping[str, Array], mask: BoolArray) -> dict[str, Array]:
    return {name: _blank(array, mask) for name, array in outputs.items()}


def _blank(array: Array, mask: BoolArray) -> Array:
    # Outputs without tokens, [B, classes] say, stay as they are.
    if array.shape[:2] != mask.shape:
        return array
    blank: Array = array.copy()
    blank[~mask] = 0
    return blank
