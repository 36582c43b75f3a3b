"""The cases of MoHQueryProjection and MoHOutputProjection."""

from dataclasses import dataclass

import numpy as np

from moh_deploy.ops.cases import Case
from moh_deploy.ops.spec import Arrays
from tests.ops.cases.edits import Edit, in_order, put, times
from tests.ops.cases.in_every_dtype import in_every_dtype


@dataclass(frozen=True)
class Setup:
    """Sizes and options of a case; the defaults are small, odd, and fit no vector width.

    Attributes:
        width: The axis without heads: in_features of the query, out_features of the output
            projection.
    """

    batch: int = 2
    seq_len: int = 7
    num_heads: int = 3
    head_dim: int = 5
    width: int = 11
    biased: bool = True
    open_share: float = 0.6
    edit: Edit | None = None  # runs before closed rows become 0

    def query_case(self, name: str, why: str) -> Case:
        return Case(name, "MoHQueryProjection", why, {"num_heads": self.num_heads}, self._query)

    def output_case(self, name: str, why: str) -> Case:
        return Case(name, "MoHOutputProjection", why, {"num_heads": self.num_heads}, self._output)

    def _query(self, rng: np.random.Generator) -> Arrays:
        return self._arrays(rng, self.width, self.num_heads * self.head_dim)

    def _output(self, rng: np.random.Generator) -> Arrays:
        x, *others = self._arrays(rng, self.num_heads * self.head_dim, self.width)
        gates = others[1]
        assert x is not None
        assert gates is not None
        return (np.where(np.repeat(gates == 0, self.head_dim, axis=-1), 0, x), *others)

    def _arrays(self, rng: np.random.Generator, rows: int, columns: int) -> Arrays:
        values = {
            "X": rng.standard_normal((self.batch, self.seq_len, rows)),
            "W": rng.standard_normal((rows, columns)) * rows**-0.5,
            "gates": self._gates(rng),
        }
        if self.biased:
            values["bias"] = rng.standard_normal(columns)
        if self.edit is not None:
            self.edit(values)
        return tuple(array.astype(np.float32) for array in values.values())

    def _gates(self, rng: np.random.Generator) -> np.ndarray:
        shape = (self.batch, self.seq_len, self.num_heads)
        gates: np.ndarray = np.where(
            rng.random(shape) < self.open_share, rng.uniform(0.25, 2.0, shape), 0.0
        )
        return gates


_NEGATIVE_GATES = times("gates", -1.0)  # a closed gate becomes -0.0
_TINY_GATES = times("gates", 1e-6)
_NAN_GATES = put("gates", np.s_[:, ::2, 0], np.nan)
_ONE_OPEN_HEAD = in_order(put("gates", np.s_[:], 0), put("gates", np.s_[-1, -1, -1], 1.0))
_NO_FIRST_HEAD = in_order(put("gates", np.s_[:], 1.0), put("gates", np.s_[..., 0], 0))
_SHARED_HEADS = put("gates", np.s_[..., :2], 1.0)
_FIRST_TOKEN_CLOSED = put("gates", np.s_[:, 0], 0)
_SECOND_BATCH_CLOSED = put("gates", 1, 0)
_NAN_TOKEN = in_order(put("X", np.s_[0, 1], np.nan), put("gates", np.s_[0, 1], 1.0))
# A token of NaN that chose nothing; an output projection has 0 there.
_NAN_CLOSED = in_order(put("X", np.s_[1, 3], np.nan), put("gates", np.s_[1, 3], 0))
_NAN_BIAS = put("bias", [1, -1], np.nan)
_LARGE_BIAS = times("bias", 100.0)


def _one_open_row_each(values: dict[str, np.ndarray]) -> None:
    """Head h belongs to token h alone, counted over the batch."""
    by_token = values["gates"].reshape(-1, values["gates"].shape[-1])
    by_token[:] = 0
    np.fill_diagonal(by_token, 1.0)


def _same_for_all_tokens(values: dict[str, np.ndarray]) -> None:
    values["gates"][:] = values["gates"][0, 0]
    values["gates"][..., 1] = 0.5


def _inf_token(values: dict[str, np.ndarray]) -> None:
    values["X"][0, 1, 0] = np.inf
    values["W"][0] = np.abs(values["W"][0]) + 0.1
    values["gates"][0, 1] = 1.0


SETUPS: dict[str, tuple[str, Setup]] = {
    "plain": ("Rows gathered for each head and put back.", Setup()),
    "no_bias": ("The bias is absent, not what lies behind the gates.", Setup(biased=False)),
    "all_open": ("The dense product.", Setup(open_share=1.1)),
    "all_open_no_bias": ("The same without bias.", Setup(open_share=1.1, biased=False)),
    "nearly_all_open": (
        "A dense order with few closed gates.",
        Setup(open_share=0.96, seq_len=37, num_heads=4),
    ),
    "all_closed": ("Nothing to multiply: the bias alone.", Setup(open_share=-1.0)),
    "all_closed_no_bias": ("The same: 0.", Setup(open_share=-1.0, biased=False)),
    "few_open": ("Most heads of a token are closed.", Setup(open_share=0.1, num_heads=8)),
    "one_open_gate": ("One row in all.", Setup(edit=_ONE_OPEN_HEAD)),
    "one_row_a_head": ("Lists of one row.", Setup(edit=_one_open_row_each)),
    "no_first_head": ("A head without rows.", Setup(edit=_NO_FIRST_HEAD, num_heads=4)),
    "shared_heads": ("Heads that every token chose.", Setup(edit=_SHARED_HEADS, num_heads=6)),
    "same_heads_for_all": ("Equal choices.", Setup(edit=_same_for_all_tokens)),
    "first_token_closed": ("A token without heads at the start.", Setup(edit=_FIRST_TOKEN_CLOSED)),
    "second_batch_closed": ("A batch without heads.", Setup(edit=_SECOND_BATCH_CLOSED)),
    "negative_gates": ("Only 0 closes; -0 is 0.", Setup(edit=_NEGATIVE_GATES)),
    "tiny_gates": ("A gate is a choice here, not a factor.", Setup(edit=_TINY_GATES)),
    "nan_gates": ("A NaN gate is open.", Setup(edit=_NAN_GATES)),
    "nan_token": ("NaN in, NaN out, in that token alone.", Setup(edit=_NAN_TOKEN)),
    "inf_token": ("Inf in, Inf out.", Setup(edit=_inf_token)),
    "nan_closed": ("A token that chose nothing reaches no other.", Setup(edit=_NAN_CLOSED)),
    "nan_bias": ("A NaN bias reaches its column.", Setup(edit=_NAN_BIAS)),
    "large_bias": ("The bias is added once, not once a head.", Setup(edit=_LARGE_BIAS)),
    "one_token": ("Decoding.", Setup(batch=1, seq_len=1, num_heads=5)),
    "one_token_a_batch": ("Decoding in a batch.", Setup(batch=3, seq_len=1)),
    "one_head": ("H = 1.", Setup(num_heads=1)),
    "head_size_one": ("D = 1.", Setup(head_dim=1, num_heads=7)),
    "width_one": ("C = 1.", Setup(width=1)),
    "whole_vectors": (
        "Sizes that every vector width divides.",
        Setup(seq_len=32, num_heads=2, head_dim=32, width=64),
    ),
    "model_sizes": (
        "Wider than one register block, longer than one row block.",
        Setup(batch=1, seq_len=67, num_heads=6, head_dim=24, width=150),
    ),
    "wide": ("More columns than one panel.", Setup(seq_len=3, head_dim=70, width=137)),
    "empty_batch": ("No sequence at all.", Setup(batch=0)),
    "empty_sequence": ("No token.", Setup(seq_len=0)),
    "empty_sequence_no_bias": ("The same without a bias.", Setup(seq_len=0, biased=False)),
    "long_rows": ("A long sum of products.", Setup(seq_len=5, head_dim=101, width=303)),
}

QUERY_CASES = in_every_dtype(
    tuple(setup.query_case(name, why) for name, (why, setup) in SETUPS.items())
)
OUTPUT_CASES = in_every_dtype(
    tuple(setup.output_case(name, why) for name, (why, setup) in SETUPS.items())
)
