"""The cases of MoHAggregatedAttention."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from moh_deploy.ops.aggregated_attention_shapes import OPTIONAL, REQUIRED
from moh_deploy.ops.cases import Case
from moh_deploy.ops.spec import Arrays
from tests.ops.cases.edits import Edit, in_order, plus, put, times
from tests.ops.cases.in_every_dtype import in_every_dtype

_VECTORS = REQUIRED[:5]


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
    optional: tuple[str, ...] = OPTIONAL
    open_share: float = 0.6
    edit: Edit | None = None  # Q, K, V and the pooled ones are [B, N or P, H, D]
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
        for name in _VECTORS:
            values[name] = values[name].reshape(*values[name].shape[:2], -1)
        names = (*REQUIRED, *OPTIONAL)
        return tuple(_narrow(values.get(name)) for name in names)

    def _required(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        tokens = (self.batch, self.image[0] * self.image[1], self.heads)
        pooled = (self.batch, self.pooled, self.heads)
        sizes = dict(zip(_VECTORS, (*[tokens] * 3, *[pooled] * 2), strict=True))
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
    return _Setup(optional=tuple(given for given in OPTIONAL if given != name))


def _only(*names: str, normalize: bool = False) -> _Setup:
    bound = 8.0 if normalize else 32.0
    return _Setup(normalize=normalize, optional=names, score_bound=bound)


# Closes head 1 for every token of batch 0, and head 0 for token 2 of batch 1.
_CLOSED = in_order(put("gates", np.s_[0, :, 1], 0.0), put("gates", np.s_[1, 2, 0], 0.0))
_NAN_QUERY_CLOSED = in_order(
    _CLOSED, put("Q", np.s_[0, :, 1], np.nan), put("Q", np.s_[1, 2, 0, :2], (np.inf, -np.inf))
)
_NAN_KEY_CLOSED = in_order(
    _CLOSED, put("K", np.s_[0, ::2, 1], np.nan), put("pooled_K", np.s_[0, 1, 1], np.inf)
)
_NAN_VALUE_CLOSED = in_order(
    _CLOSED, put("V", np.s_[0, ::2, 1], np.nan), put("pooled_V", np.s_[0, 1, 1], -np.inf)
)
_NAN_QUERY = put("Q", np.s_[0, 8, 2, 1], np.nan)
# Seen by the windows around token 9, which is at row 1, column 2.
_NAN_KEY = put("K", np.s_[1, 9, 0, 3], np.nan)
# Token 6 ends the first row: the tokens that begin a row do not see it.
_NAN_KEY_AT_THE_EDGE = put("K", np.s_[:, 6, :, 0], np.nan)
_NAN_VALUE_AT_THE_EDGE = in_order(
    put("V", np.s_[:, 6, :, 0], np.nan), put("V", np.s_[:, 28, :, 1], np.nan)
)
_INFINITE_VALUE = in_order(
    put("V", np.s_[0, 17, 1, 2], np.inf), put("pooled_V", np.s_[1, 2, 0, 4], -np.inf)
)
_NAN_POOLED_KEY = put("pooled_K", np.s_[0, 3, 2, 0], np.nan)
_NAN_POOLED_VALUE = put("pooled_V", np.s_[0, 3, 2, 0], np.nan)
# The first place lies outside for the first row and column: their scores have no bias.
_NAN_BIAS = in_order(
    put("window_bias", np.s_[2, 0], np.nan), put("pooled_bias", np.s_[0, 17, 1], np.nan)
)
_NAN_GATE = put("gates", np.s_[1, 4, 0], np.nan)
_NEGATIVE_GATES = times("gates", -1.0)  # closed gates become -0.0
_LARGE_SCALE = times("query_scale", 100.0)
_SHARP_SCALE = times("query_scale", 10.0)
_LARGE_VECTORS = in_order(times("Q", 6.0), times("K", 6.0), times("pooled_K", 6.0))
_FAR_BETTER_POOL = plus("pooled_bias", 300.0)
_FAR_BETTER_WINDOW = plus("window_bias", 300.0)
_ZERO_VECTORS = in_order(
    put("Q", np.s_[:, ::3], 0.0), put("K", np.s_[:, ::2], 0.0), put("pooled_K", np.s_[:, 1], 0.0)
)


def _infinite_bias(values: dict[str, np.ndarray]) -> None:
    """Hides places of the window, its centre too, and pooled tokens, though never the last."""
    values["window_bias"][0, :] = -np.inf
    values["window_bias"][1, (1, 4)] = -np.inf
    values["pooled_bias"][:, :, :-1][values["pooled_bias"][:, :, :-1] > 0.5] = -np.inf


def _equal_keys(values: dict[str, np.ndarray]) -> None:
    values["K"][:] = values["K"][:, :1]
    values["pooled_K"][:] = values["K"][:, :1]


_TABLE: Mapping[str, tuple[str, _Setup]] = {
    "plain": ("Every input, as the published models have it.", _Setup()),
    "not_normalized": (
        "Queries and keys of any length.",
        _Setup(normalize=False, score_bound=48.0),
    ),
    "nothing_optional": ("None of the optional inputs.", _only()),
    "nothing_optional_normalized": ("Cosine scores alone.", _only(normalize=True)),
    **{f"without_{name}": ("The other optional inputs.", _without(name)) for name in OPTIONAL},
    **{f"{name}_only": ("Absent inputs before and after it.", _only(name)) for name in OPTIONAL},
    "window_weights_only": (
        "Weights beside the softmax, from queries that are not normalized.",
        _only("window_tokens", "window_offset"),
    ),
    "all_open": ("Gates of all heads are open.", _Setup(open_share=1.1)),
    "all_closed": ("Every row is exactly 0.", _Setup(open_share=-1.0)),
    "negative_gates": (
        "A gate may be negative; -0.0 is closed.",
        _Setup(edit=_NEGATIVE_GATES),
    ),
    "sparse_routing": (
        "Some heads are chosen by nobody, some by one token.",
        _Setup(batch=1, heads=16, head_dim=3, open_share=0.03),
    ),
    "single_everything": (
        "One batch, head, channel, pixel, place, pooled token.",
        _Setup(1, 1, 1, image=(1, 1), kernel=(1, 1), pooled=1, open_share=1.1),
    ),
    "one_pixel": (
        "All of the window but its centre is outside.",
        _Setup(image=(1, 1), open_share=1.1),
    ),
    "one_row": ("Rows above and below are outside.", _Setup(image=(1, 9))),
    "one_column": ("Columns left and right are outside.", _Setup(image=(9, 1))),
    "window_larger_than_image": (
        "No place is inside for every pixel.",
        _Setup(image=(2, 3), kernel=(5, 7)),
    ),
    "large_image": (
        "More pixels than a tile of any kernel.",
        _Setup(batch=1, heads=2, image=(19, 37), pooled=9),
    ),
    "long_rows": ("Rows longer than any vector.", _Setup(batch=1, heads=1, image=(3, 131))),
    "square_image": ("Height and width are the same.", _Setup(image=(6, 6))),
    "tall_image": ("Height is more than width.", _Setup(image=(11, 4))),
    "kernel_1x1": ("The window is the pixel itself.", _Setup(kernel=(1, 1))),
    "kernel_1x3": ("A window of one row.", _Setup(kernel=(1, 3))),
    "kernel_3x1": ("A window of one column.", _Setup(kernel=(3, 1))),
    "kernel_5x3": ("More rows than columns.", _Setup(kernel=(5, 3))),
    "kernel_3x5": ("More columns than rows.", _Setup(kernel=(3, 5))),
    "kernel_7x7": ("A window of 49 places.", _Setup(kernel=(7, 7), heads=2)),
    "one_head": ("One head.", _Setup(heads=1)),
    "head_dim_1": ("One channel a head: normalized vectors are signs.", _Setup(head_dim=1)),
    "head_dim_3": ("Narrower than any vector.", _Setup(heads=7, head_dim=3)),
    "head_dim_24": ("The published head size.", _Setup(head_dim=24, pooled=49)),
    "head_dim_37": ("Wider than a vector, and odd.", _Setup(head_dim=37, heads=2)),
    "head_dim_139": ("Beyond 64, and no multiple of 8.", _Setup(batch=1, heads=2, head_dim=139)),
    "one_pooled": ("A pooled image of one pixel.", _Setup(pooled=1)),
    "many_pooled": ("More pooled tokens than a tile of any kernel.", _Setup(batch=1, pooled=301)),
    "sharp_scale": (
        "A learned temperature as it may be: what is lost of a query's direction shows.",
        _Setup(edit=_SHARP_SCALE, score_bound=64.0),
    ),
    "large_scale": (
        "Scores of several hundred: exp overflows unless the row maximum is taken off first.",
        _Setup(edit=_LARGE_SCALE, score_bound=700.0),
    ),
    "large_vectors": (
        "The same from vectors that are not normalized.",
        _Setup(normalize=False, edit=_LARGE_VECTORS, score_bound=1600.0),
    ),
    "far_better_pool": (
        "The row maximum is that of window and pooled scores together.",
        _Setup(edit=_FAR_BETTER_POOL, score_bound=300.0),
    ),
    "far_better_window": (
        "The same the other way.",
        _Setup(edit=_FAR_BETTER_WINDOW, score_bound=300.0),
    ),
    "equal_keys": ("All keys are equal.", _Setup(edit=_equal_keys)),
    "zero_vectors": (
        "A vector of length 0 stays 0: it is divided by epsilon.",
        _Setup(edit=_ZERO_VECTORS),
    ),
    "large_epsilon": (
        "Vectors shorter than epsilon are divided by it, not by the sum of both.",
        _Setup(epsilon=2.0),
    ),
    "infinite_bias": (
        "A bias of -inf hides a place or a pooled token.",
        _Setup(edit=_infinite_bias),
    ),
    "nan_query_closed": (
        "A closed gate silences NaN and Inf in queries.",
        _Setup(edit=_NAN_QUERY_CLOSED),
    ),
    "nan_key_closed": ("A closed gate silences them in keys.", _Setup(edit=_NAN_KEY_CLOSED)),
    "nan_value_closed": ("A closed gate silences them in values.", _Setup(edit=_NAN_VALUE_CLOSED)),
    "nan_query": ("An open gate hides nothing: a query.", _Setup(edit=_NAN_QUERY, open_share=1.1)),
    "nan_key": ("A NaN key reaches the windows that hold it, no others.", _Setup(edit=_NAN_KEY)),
    "nan_key_at_the_edge": (
        "The window does not run on into the next row.",
        _Setup(edit=_NAN_KEY_AT_THE_EDGE),
    ),
    "nan_value_at_the_edge": (
        "Nor do the values.",
        _Setup(edit=_NAN_VALUE_AT_THE_EDGE),
    ),
    "infinite_value": (
        "An infinite value reaches its channel only.",
        replace(_only(), edit=_INFINITE_VALUE, open_share=1.1),
    ),
    "nan_pooled_key": ("A NaN pooled key reaches every token.", _Setup(edit=_NAN_POOLED_KEY)),
    "nan_pooled_value": ("A NaN pooled value reaches its channel.", _Setup(edit=_NAN_POOLED_VALUE)),
    "nan_bias": ("A NaN bias reaches the scores that it is added to.", _Setup(edit=_NAN_BIAS)),
    "nan_gate": ("A NaN gate propagates.", _Setup(edit=_NAN_GATE)),
}

CASES = in_every_dtype(tuple(setup.case(name, why) for name, (why, setup) in _TABLE.items()))
