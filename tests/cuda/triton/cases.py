"""The cases of attention that Triton's kernel takes: heads of whole 16 bytes, and no mask.

Those of the contract have smaller heads: theirs are filled up, which changes no score.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from moh_deploy.ops.cases import Case
from moh_deploy.ops.spec import Arrays
from tests.cuda.drawn import cases_of_several_tiles, drawn_cases
from tests.ops.cases import OP_CASES

DTYPES = ("float16", "bfloat16")
VECTOR = 8
"""Features of 16 bytes."""
MOST_COLUMNS = 128
DRAWS = 60


def contract_cases(dtype: str) -> list[Case]:
    """Return those of the contract, with heads of whole vectors."""
    return list(_taken(case for case in OP_CASES["MoHAttention"] if case.dtype == dtype))


def tile_cases(dtype: str) -> list[Case]:
    """Return attention over several tiles of rows and keys."""
    return list(_taken(case for case in cases_of_several_tiles() if case.dtype == dtype))


def drawn_cases_taken(dtype: str) -> list[Case]:
    """Return cases that no table lists."""
    found = _taken(drawn_cases("MoHAttention", DRAWS))
    return list({case.name: case.in_dtype(dtype) for case in found}.values())


def _taken(cases: Iterator[Case] | tuple[Case, ...]) -> Iterator[Case]:
    for case in map(_in_whole_vectors, cases):
        query, _, value, _, *mask = case.inputs()
        assert query is not None
        assert value is not None
        sizes = (_head_size(query, case, "q_num_heads"), _head_size(value, case, "kv_num_heads"))
        if max(sizes) <= MOST_COLUMNS and all(one is None for one in mask):
            yield case


def _in_whole_vectors(case: Case) -> Case:
    def build(rng: np.random.Generator) -> Arrays:
        query, key, value, *others = case.build(rng)
        return (
            _filled_up(query, int(case.attributes["q_num_heads"]), 0),
            _filled_up(key, int(case.attributes["kv_num_heads"]), 0),
            _filled_up(value, int(case.attributes["kv_num_heads"]), None),
            *others,
        )

    return replace(case, build=build)


def _filled_up(array: np.ndarray | None, heads: int, filling: float | None) -> np.ndarray:
    """Widen heads to whole vectors: with a number, or None: with their own features again."""
    in_last_axis = heads if array.ndim == 3 else 1
    size = array.shape[-1] // in_last_axis
    by_head = array.reshape(*array.shape[:-1], in_last_axis, size)
    missing = -size % VECTOR
    widened = (
        by_head[..., np.arange(size + missing) % size]
        if filling is None
        else np.pad(
            by_head, [(0, 0)] * (by_head.ndim - 1) + [(0, missing)], constant_values=filling
        )
    )
    return np.ascontiguousarray(widened.reshape(*array.shape[:-1], in_last_axis * (size + missing)))


def _head_size(array: np.ndarray, case: Case, heads: str) -> int:
    return array.shape[-1] // (int(case.attributes[heads]) if array.ndim == 3 else 1)
