"""Tell answers that cannot be right by themselves: NaN and infinities out of finite inputs.

Some models take or return such values rightly: a mask of -inf, scores of what is masked. What kinds
a package's recorded runs hold in a tensor are usual there, and say nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from moh_deploy.package import VectorSet
from moh_deploy.serving.guard.ladder_state import TripReason
from moh_deploy.system.npz import Array, BoolArray

NonFinite = Literal["NaN", "inf", "-inf"]
_TESTS: Mapping[NonFinite, Callable[[Array], BoolArray]] = {
    "NaN": np.isnan,
    "inf": lambda array: np.isinf(array) & ~np.signbit(array),
    "-inf": lambda array: np.isinf(array) & np.signbit(array),
}


@dataclass(frozen=True)
class WrongSamples:
    """Samples of an answer that cannot be right, and why.

    Attributes:
        reason: Of the first tensor that is wrong.
        value: Its name.
        samples: Numbers of the samples.
    """

    reason: TripReason
    value: str
    samples: tuple[int, ...]


@dataclass(frozen=True)
class AnswerCheck:
    """Judges answers by what is finite in them.

    Attributes:
        outputs: Names of the model's outputs.
        gates: Names of its layers' gates.
        usual: Tensor to the kinds of values that recorded runs hold in it.
        has_samples: The first axis of every input and output is that of the samples.
    """

    outputs: tuple[str, ...]
    gates: tuple[str, ...]
    usual: Mapping[str, frozenset[NonFinite]]
    has_samples: bool

    @classmethod
    def of(
        cls,
        outputs: Sequence[str],
        gates: Sequence[str],
        recorded: Sequence[VectorSet],
        *,
        has_samples: bool,
    ) -> AnswerCheck:
        """Learn from recorded runs what is usual."""
        usual: dict[str, frozenset[NonFinite]] = {}
        for one in recorded:
            tensors = {**one.inputs, **one.outputs, **dict(zip(gates, one.gates, strict=False))}
            for name, array in tensors.items():
                usual[name] = usual.get(name, frozenset()) | _kinds(array)
        return cls(tuple(outputs), tuple(gates), usual, has_samples)

    def wrong(
        self, inputs: Mapping[str, Array], results: Mapping[str, Array]
    ) -> WrongSamples | None:
        """Return the samples with finite inputs and an answer that is not; None without any.

        Args:
            inputs: The batch.
            results: What it was answered with; gates that are not among it are not looked at.
        """
        named = [(name, results[name]) for name in self.outputs]
        named += [(name, results[name]) for name in self.gates if name in results]
        # The way of nearly every answer.
        if all_finite([array for _, array in named]):
            return None
        suspects = [(name, one) for name, one in named if self._is_unusual(name, one)]
        if not suspects:
            return None
        size = len(next(iter(inputs.values()))) if self.has_samples else 1
        judged = ~self._unusual_samples(inputs, tuple(inputs), size)
        if not judged.all():
            # Of gates per window nobody can tell whether they are of the samples that are judged.
            suspects = [(name, one) for name, one in suspects if _is_by_sample(one, size)]
        for name, _ in suspects:
            if (self._unusual_samples(results, [name], size) & judged).any():
                every = self._unusual_samples(results, [name for name, _ in suspects], size)
                samples = tuple(map(int, np.flatnonzero(every & judged)))
                is_output = name in self.outputs
                reason: TripReason = "non-finite outputs" if is_output else "non-finite gates"
                return WrongSamples(reason, name, samples)
        return None

    def _is_unusual(self, name: str, array: Array) -> bool:
        if is_finite(array):
            return False
        return bool(_kinds(array) - self.usual.get(name, frozenset()))

    def _unusual_samples(
        self, tensors: Mapping[str, Array], names: Sequence[str], size: int
    ) -> BoolArray:
        """Tell of each sample whether one of these tensors holds in it what is not usual."""
        found = np.zeros(size, bool)
        for name in names:
            array = tensors[name]
            if not self._is_unusual(name, array):
                continue
            unusual = np.zeros(array.shape, bool)
            for kind in _kinds(array) - self.usual.get(name, frozenset()):
                unusual |= _TESTS[kind](array)
            # Gates may be of something else than samples, such as windows: then all are concerned.
            by_sample = _is_by_sample(array, size)
            found |= unusual.reshape(size, -1).any(axis=1) if by_sample else unusual.any()
        return found


def _is_by_sample(array: Array, size: int) -> bool:
    return array.ndim > 0 and len(array) == size


def all_finite(arrays: Sequence[Array]) -> bool:
    """Tell whether there is neither NaN nor infinity in any array: what is no float has none."""
    # Sums are finite only if all of it is: one pass, and no array of booleans.
    with np.errstate(over="ignore", invalid="ignore"):
        total = sum(
            float(np.add.reduce(one, axis=None)) for one in arrays if one.dtype.char in "fd"
        )
    if not math.isfinite(total):
        return all(map(is_finite, arrays))
    return all(is_finite(one) for one in arrays if one.dtype.char not in "fd")


def is_finite(array: Array) -> bool:
    """Tell the same of one array."""
    return not (array.size and _is_float(array)) or bool(np.isfinite(array).all())


def _kinds(array: Array) -> frozenset[NonFinite]:
    if is_finite(array):
        return frozenset()
    return frozenset(kind for kind, test in _TESTS.items() if test(array).any())


def _is_float(array: Array) -> bool:
    # bfloat16 is of numpy's kind V: a dtype of somebody else's.
    return array.dtype.kind == "f" or array.dtype.name == "bfloat16"
