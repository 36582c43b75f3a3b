"""MoHAttention on the CPU kernels under masks that have structure, which kernels skip by.

Kernels look for the first and the last key that a row sees, in vectors, tiles and blocks of keys;
sizes here have edges in all of these. A wrong edge by one key is an error of the order of a value.
"""

import zlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from moh_deploy.ops.spec import FLOAT_TYPES, Arrays
from tests.nightly import sampled
from tests.plugins.attention_setups import AttentionSetup, KernelCase
from tests.plugins.kernels import Kernels, assert_right

# Of the positions of queries [S, 1] among the keys, and of keys [T]: whether it is seen.
Structure = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]

STRUCTURES: dict[str, Structure] = {
    "causal": lambda query, key, rng: key <= query,
    "causal_padded_left": lambda query, key, rng: (key <= query) & (key >= 37),
    "causal_padded_right": lambda query, key, rng: (key <= query) & (key < 141),
    "causal_padded_both": lambda query, key, rng: (key <= query) & (key >= 20) & (key < 150),
    "window": lambda query, key, rng: (key <= query) & (key > query - 21),
    "window_of_one": lambda query, key, rng: key == query,
    "window_both_sides": lambda query, key, rng: abs(query - key) < 30,
    "window_and_first_keys": lambda query, key, rng: (
        (key <= query) & ((key > query - 9) | (key < 4))
    ),
    "future": lambda query, key, rng: key > query,
    "documents": lambda query, key, rng: (query // 50 == key // 50) & (key <= query),
    "prefix": lambda query, key, rng: (key <= query) | (key < 70),
    "hole": lambda query, key, rng: (key < 33) | ((key > 170) & (key <= query)),
    "dilated": lambda query, key, rng: (query - key) % 3 == 0,
    "blocks": lambda query, key, rng: (
        rng.random((len(query) // 24 + 2, len(key) // 40 + 1))[
            query // 24 - query[0] // 24, key // 40
        ]
        < 0.4
    ),
    "other_queries_blind": lambda query, key, rng: (key <= query) & (query % 2 == 0),
    "first_half_blind": lambda query, key, rng: (key <= query) & (query > query.mean()),
    "sparse": lambda query, key, rng: rng.random((len(query), len(key))) < 0.05,
    "nothing_hidden": lambda query, key, rng: (key <= query) | True,
    "everything_hidden": lambda query, key, rng: (key <= query) & False,
}
# What hides, and what else an additive mask has.
FILLS = {
    "bool": ("bool", None),
    "-inf": ("float32", -np.inf),
    "lowest": ("float32", np.finfo(np.float32).min),
    "-1e9": ("float32", -1e9),
    "-1e4": ("float32", -1e4),
    "-50": ("float32", -50.0),
    "float16 -65504": ("float16", -65504.0),
    "float16 -inf": ("float16", -np.inf),
    "bfloat16 -1e9": ("bfloat16", -1e9),
    "-inf and slopes": ("float32", -np.inf),
    "lowest and slopes": ("float32", np.finfo(np.float32).min),
    "-1e4 and slopes": ("float32", -1e4),
}
# Beside such biases alone, float32 has no room for scores: a softmax of rounding.
_ROUNDS_SCORES = ("-1e9", "-1e4", "-65504")
_LEAVES_BLIND = ("blind", "everything", "first_half", "other", "sparse", "blocks", "future")
_AXES = {  # of batch and head
    "shared": (1, 1),
    "each_sequence": (2, 1),
    "each_head": (1, 4),
    "all": (2, 4),
}
SETUP = AttentionSetup(
    batch=2, seq_len=130, kv_len=203, kv_num_heads=2, group=2, head_dim=16, value_dim=16
)


def mask_of(structure: str, fill: str, axes: tuple[int, int], setup: AttentionSetup) -> np.ndarray:
    """Return a mask [batch or 1, heads or 1, S, T] in float64, or of bools."""
    rng = np.random.default_rng(zlib.crc32(f"{structure} {fill}".encode()))
    query = np.arange(setup.seq_len)[:, None] + setup.kv_len - setup.seq_len
    key = np.arange(setup.kv_len)
    masks = []
    for i in range(axes[0] * axes[1]):
        # Each sequence and head has another mask: shifted by some keys.
        seen = STRUCTURES[structure](query - 5 * i, key, rng)
        slopes = -abs(query - key) * 2.0**-i if fill.endswith("slopes") else 0.0
        masks.append(seen if fill == "bool" else np.where(seen, slopes, FILLS[fill][1]))
    return np.stack(masks).reshape(*axes, *masks[0].shape)


def with_optional(case: KernelCase, **optional: np.ndarray) -> KernelCase:
    """Return the case with a mask, lengths or ranges behind its gates."""
    names = ("attn_mask", "nonpad_kv_seqlen", "key_ranges")
    last = max(names.index(name) for name in optional) + 1

    def build(rng: np.random.Generator) -> Arrays:
        return (*case.build(rng), *(optional.get(name) for name in names[:last]))

    return replace(case, build=build)


def _sensible(structure: str, fill: str) -> bool:
    rounds = any(number in fill for number in _ROUNDS_SCORES)
    return not (rounds and any(word in structure for word in _LEAVES_BLIND))


PAIRS = [(s, f) for s in STRUCTURES for f in FILLS if _sensible(s, f)]


@sampled(16)
@pytest.mark.parametrize(
    ("structure", "fill", "axes", "dtype"),
    [(*pair, list(_AXES)[(i // 3) % 4], FLOAT_TYPES[i % 7 % 3]) for i, pair in enumerate(PAIRS)],
)
def test_masks_of_every_structure_agree_with_the_reference(
    kernels: Kernels, structure: str, fill: str, axes: str, dtype: str
):
    setup = replace(SETUP, dtype=dtype, gates=("share", "all", "few")[len(structure) % 3])
    mask = mask_of(structure, fill, _AXES[axes], setup)
    # float32 rounds a score as its bias is large.
    base = replace(setup.case(), mask_dtype=FILLS[fill][0], score_bound=200.0)
    case = with_optional(base, attn_mask=mask)
    assert_right(case, kernels.run(case))


_FAR = 2**62
RANGES = {
    "window": lambda query, rng: (query - 20, query + 1),
    "window_both_sides": lambda query, rng: (query - 30, query + 31),
    "one_key": lambda query, rng: (query, query + 1),
    "all": lambda query, rng: (query - _FAR, query + _FAR),
    "documents": lambda query, rng: (query // 50 * 50, query // 50 * 50 + 50),
    "from_the_end": lambda query, rng: (300 - query, query * 0 + _FAR),
    "any": lambda query, rng: np.sort(rng.integers(-30, 240, (2, len(query))), axis=0),
    "some_blind": lambda query, rng: rng.integers(-30, 240, (2, len(query))),
    "nothing": lambda query, rng: (query * 0 + 300, query * 0 - 5),
}
# Sizes, and what else hides.
WITH = {
    "nothing_else": {},
    "causal": {"is_causal": True},
    "padding": {"pad": True},
    "causal_padding": {"is_causal": True, "pad": True},
    "causal_lengths": {"is_causal": True, "lengths": True},
    "slopes": {"slopes": True},
    "many_heads": {"kv_num_heads": 1, "group": 7, "gates": "few"},
    "one_head": {"kv_num_heads": 2, "group": 1, "kv_len": 700, "seq_len": 160},
    "step": {"seq_len": 1, "gates": "all"},
    "few_queries": {"seq_len": 3, "is_causal": True, "gates": "few"},
    "step_padding": {"seq_len": 1, "gates": "all", "pad": True, "kv_len": 301},
}


@sampled(8)
@pytest.mark.parametrize(("beside", "ranges"), [(b, r) for b in WITH for r in RANGES])
def test_ranges_agree_with_the_reference(kernels: Kernels, beside: str, ranges: str):
    options = dict(WITH[beside])
    hidden = {name: options.pop(name, False) for name in ("pad", "lengths", "slopes")}
    seed = zlib.crc32(f"{beside} {ranges}".encode())
    dtype = FLOAT_TYPES[seed % 3]
    setup = replace(SETUP, dtype=dtype, **options)
    rng = np.random.default_rng(seed)
    query = np.arange(setup.seq_len) + setup.kv_len - setup.seq_len
    batch = 1 + seed // 3 % 2
    optional = {
        "key_ranges": np.stack(
            [np.stack(RANGES[ranges](query - 7 * b, rng), axis=-1) for b in range(batch)]
        )
    }
    if hidden["pad"]:
        first = np.array([13, 80])[:, None, None, None]
        key = np.arange(setup.kv_len)
        optional["attn_mask"] = (key >= first) & (key < setup.kv_len - 40)
    if hidden["slopes"]:
        optional["attn_mask"] = -abs(query[:, None] - np.arange(setup.kv_len)) / 8
    if hidden["lengths"]:
        optional["nonpad_kv_seqlen"] = np.array([setup.kv_len - 9, 77])
    base = replace(setup.case(), score_bound=100.0 if hidden["slopes"] else 8.0)
    case = with_optional(base, **optional)
    assert_right(case, kernels.run(case))


@pytest.mark.parametrize("long", ["query", "key", "neither"])
def test_a_finite_bias_hides_no_key_whose_score_is_larger(kernels: Kernels, long: str):
    """Queries, keys and the scale are such that a product of any two of them looks harmless."""
    setup = replace(SETUP, batch=1, seq_len=64, kv_len=64, gates="all", rank=4)
    base = setup.case()
    query, key, value, gates = base.inputs()
    length = {"query": (3000.0, 5.0), "key": (5.0, 3000.0), "neither": (122.0, 123.0)}[long]
    # The last key is in the future of all others, and beats the bias of that by some thousands.
    query[..., 0], key[:, :, -1, 0], key[:, :, :-1, 0] = length[0], length[1], 0.0
    bias = np.where(np.tri(64, dtype=bool), 0.0, -1e4)
    attributes = dict(base.attributes) | {"scale": 1.0}
    case = replace(
        base,
        attributes=attributes,
        build=lambda rng: (query, key, value, gates, bias),
        score_bound=15000.0,
    )
    assert_right(case, kernels.run(case))


@pytest.mark.parametrize("best", [-1e30, -3e7, -1e4, 3e7])
def test_only_the_distance_of_biases_hides(kernels: Kernels, best: float):
    """A row of large biases is a softmax of those near the best; none of them hides by itself."""
    setup = replace(SETUP, batch=1, kv_len=130, gates="all", rank=4)
    base = setup.case()
    query, key, value, gates = base.inputs()
    lowest = float(np.finfo(np.float32).min)
    seen = np.tri(130, k=-40, dtype=bool)
    seen[:40] = True
    bias = np.where(seen, best, lowest)
    bias[5] = lowest
    query[:] = 0.0  # beside the largest of these, float32 has no room for scores
    case = replace(base, build=lambda rng: (query, key, value, gates, bias))
    assert_right(case, kernels.run(case))
