"""The cases of attention that Triton's kernel takes: heads of whole 16 bytes, no mask or lengths.

Those of the contract have smaller heads: theirs are filled up, which changes no score.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from moh_deploy.ops.cases import Case
from moh_deploy.ops.spec import Arrays
from tests.cuda.drawn import cases_of_several_tiles, drawn_cases
from tests.ops.cases import OP_CASES
from tests.plugins.attention_setups import AttentionSetup

DTYPES = ("float16", "bfloat16")
VECTOR = 8
"""Features of 16 bytes."""
MOST_COLUMNS = 128
DRAWS = 60

_LONG = AttentionSetup(batch=2, seq_len=150, kv_len=330, kv_num_heads=1, head_dim=24, value_dim=24)
_FAR = 2**62
"""Beyond all keys, and more than 32 bits hold."""
_RANGES = {
    # Of positions [S] among the keys: the first key that is seen, and the end of those.
    "window": lambda place, rng: (place - 30, place + 31),
    "whole tiles between edges": lambda place, rng: (place // 4, place * 0 + _FAR),
    "documents": lambda place, rng: (place // 70 * 70, place // 70 * 70 + 70),
    "some queries blind": lambda place, rng: rng.integers(-30, 360, (2, len(place))),
    "nothing": lambda place, rng: (place * 0 + 400, place * 0 - _FAR),
}


def contract_cases(dtype: str) -> list[Case]:
    """Return those of the contract, with heads of whole vectors."""
    return list(_taken(case for case in OP_CASES["MoHAttention"] if case.dtype == dtype))


def tile_cases(dtype: str) -> list[Case]:
    """Return attention over several tiles of rows and keys, also where ranges limit the keys."""
    cases = [case for case in cases_of_several_tiles() if case.dtype == dtype]
    setups = (_LONG, replace(_LONG, group=3, seq_len=50, is_causal=True, gates="few"))
    cases += [_in_ranges(replace(each, dtype=dtype), name) for each in setups for name in _RANGES]
    return list(_taken(iter(cases)))


def drawn_cases_taken(dtype: str) -> list[Case]:
    """Return cases that no table lists."""
    found = _taken(drawn_cases("MoHAttention", DRAWS))
    return list({case.name: case.in_dtype(dtype) for case in found}.values())


def _taken(cases: Iterator[Case] | tuple[Case, ...]) -> Iterator[Case]:
    for case in map(_in_whole_vectors, cases):
        query, _, value, _, *optional = case.inputs()
        assert query is not None
        assert value is not None
        sizes = (_head_size(query, case, "q_num_heads"), _head_size(value, case, "kv_num_heads"))
        if max(sizes) <= MOST_COLUMNS and all(given is None for given in optional[:2]):
            yield case


def _in_ranges(setup: AttentionSetup, name: str) -> Case:
    case = setup.case()

    def build(rng: np.random.Generator) -> Arrays:
        tensors, place = case.build(rng), np.arange(setup.seq_len) + setup.kv_len - setup.seq_len
        # Sequences have ranges of their own.
        ranges = [np.stack(_RANGES[name](place - 9 * b, rng), axis=-1) for b in range(setup.batch)]
        return (*tensors, None, None, np.stack(ranges))

    return replace(case, name=f"{case.name}, {name}", build=build)


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
