"""The cases of MoHAggregatedAttention."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from moh_deploy.ops.cases import Case, in_every_dtype
from moh_deploy.ops.spec import Arrays

Edit = Callable[[dict[str, np.ndarray]], None]
"""Puts special values into the inputs, in place. Q, K, V and the pooled ones are
[B, N or P, H, D]."""

_REQUIRED = ("Q", "K", "V", "pooled_K", "pooled_V", "gates")
_EVERY = (
    "query_embedding",
    "query_scale",
    "window_bias",
    "pooled_bias",
    "window_tokens",
    "window_offset",
)


@dataclass(frozen=True)
class _Setup:
    """Sizes and options of a case; the defaults are small, odd, and fit no vector width."""

    batch: int = 2
    heads: int = 3
    head_dim: int = 5
    image: tuple[int, int] = (5, 7)
    kernel: tuple[int, int] = (3, 3)
    pooled: int = 4
    normalize: bool = True
    epsilon: float = 1e-12
    optional: tuple[str, ...] = _EVERY
    open_share: float = 0.6
    edit: Edit | None = None
    score_bound: float = 8.0

    def case(self, name: str, why: str) -> Case:
        attributes = {
            "num_heads": self.heads,
            "height": self.image[0],
            "width": self.image[1],
            "kernel_height": self.kernel[0],
            "kernel_width": self.kernel[1],
            "normalize": int(self.normalize),
            "epsilon": self.epsilon,
        }
        return Case(
            name,
            "MoHAggregatedAttention",
            why,
            attributes,
            self.build,
            score_bound=self.score_bound,
        )

    def build(self, rng: np.random.Generator) -> Arrays:
        values = self._required(rng) | self._optional(rng)
        if self.edit is not None:
            self.edit(values)
        for name in _REQUIRED[:5]:
            values[name] = values[name].reshape(*values[name].shape[:2], -1)
        names = (*_REQUIRED, *_EVERY)
        return tuple(_narrow(values.get(name)) for name in names)

    def _required(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        tokens = (self.batch, self.image[0] * self.image[1], self.heads)
        pooled = (self.batch, self.pooled, self.heads)
        sizes = dict(zip(_REQUIRED, (*[tokens] * 3, *[pooled] * 2), strict=False))
        values = {name: rng.standard_normal((*size, self.head_dim)) for name, size in sizes.items()}
        is_open = rng.random(tokens) < self.open_share
        return values | {"gates": np.where(is_open, rng.uniform(0.25, 2.0, tokens), 0.0)}

    def _optional(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        tokens, places = self.image[0] * self.image[1], self.kernel[0] * self.kernel[1]
        values = {
            "query_embedding": 0.3 * rng.standard_normal((self.heads, self.head_dim)),
            "query_scale": rng.uniform(0.5, 4.0, (self.heads, tokens)),
            "window_bias": rng.standard_normal((self.heads, places)),
            "pooled_bias": rng.standard_normal((self.heads, tokens, self.pooled)),
            "window_tokens": 0.2 * rng.standard_normal((self.heads, self.head_dim, places)),
            "window_offset": 0.2 * rng.standard_normal((self.heads, places)),
        }
        return {name: values[name] for name in self.optional}


def _narrow(array: np.ndarray | None) -> np.ndarray | None:
    return None if array is None else array.astype(np.float32)


def _without(name: str) -> _Setup:
    return replace(_Setup(), optional=tuple(given for given in _EVERY if given != name))


def _only(*names: str) -> _Setup:
    return _Setup(normalize=False, optional=names)


def _close(values: dict[str, np.ndarray]) -> None:
    """Close head 1 for every token of batch 0, and head 0 for token 2 of batch 1."""
    values["gates"][0, :, 1] = 0.0
    values["gates"][1, 2, 0] = 0.0


def _nan_closed(values: dict[str, np.ndarray]) -> None:
    _close(values)
    for name in _REQUIRED[:5]:
        values[name][0, ::2, 1] = np.nan
        values[name][0, 1, 1] = np.inf
    values["Q"][1, 2, 0] = np.nan


def _nan_gate(values: dict[str, np.ndarray]) -> None:
    values["gates"][1, 4, 0] = np.nan


_TABLE: Mapping[str, tuple[str, _Setup]] = {
    "plain": ("Every input, as the published models have it.", _Setup()),
    "nothing_optional": ("None of the optional inputs.", _only()),
    "all_open": ("Gates of all heads are open.", _Setup(open_share=1.1)),
    "all_closed": ("Every row is exactly 0.", _Setup(open_share=-1.0)),
    "window_offset_only": ("Absent inputs before a present one.", _only("window_offset")),
    "wide_kernel": ("A window of 5 rows and 3 columns.", _Setup(kernel=(5, 3))),
    "nan_closed": ("A closed gate silences NaN and Inf.", _Setup(edit=_nan_closed)),
    "nan_gate": ("A NaN gate propagates.", _Setup(edit=_nan_gate)),
}

CASES = in_every_dtype(tuple(setup.case(name, why) for name, (why, setup) in _TABLE.items()))
