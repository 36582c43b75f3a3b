"""Matrix products of bfloat16 operands: `moh.compute_type` is `bfloat16`."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given

from moh_deploy.ops import MOH_ATTENTION
from moh_deploy.ops.cases import Case
from moh_deploy.ops.spec import FLOAT_TYPES
from moh_deploy.runtime.kernel_use import BFLOAT16_SETS
from tests.nightly import sampled
from tests.ops.batches import assert_nothing_wrong
from tests.ops.cases import OP_CASES
from tests.plugins.attention_setups import AttentionSetup, MaskSetup
from tests.plugins.draws import attention_setups
from tests.plugins.kernels import EMULATED_AMX, INSTRUCTION_SETS, Kernels, kernels_of

BOUND = 2e-2  # of the largest value, at least 1: bfloat16 has 8 bits
ROUNDING = 2.0**-8  # of one weight, relative
TILES = AttentionSetup(batch=2, seq_len=130, kv_len=300, head_dim=37, value_dim=21)


@pytest.fixture(params=[*BFLOAT16_SETS, EMULATED_AMX], scope="module")
def kernels(request: pytest.FixtureRequest) -> Kernels:
    """The emulated ones have the layout and the packing of amx_bf16, on every machine."""
    return replace(kernels_of(request.param), compute_type="bfloat16")


def _assert_close(kernels: Kernels, case: Case, *, bound: float = BOUND) -> None:
    """Zeros and special values as in the reference, all else within `bound`."""
    (output,) = kernels.run(case)
    got = output.astype(np.float64)
    (reference,) = MOH_ATTENTION.reference(case.inputs(), case.attributes)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(reference))
    assert np.all(got[reference == 0] == 0)
    largest = np.abs(np.nan_to_num(reference)).max(initial=1.0)
    np.testing.assert_allclose(got, reference, atol=bound * largest, rtol=0)


# Their scores are so large that eight bits of a query change the softmax.
_LARGE = ("large_scores", "negative_scale")
_NAMED = [c for c in OP_CASES["MoHAttention"] if c.name not in _LARGE]


@sampled(8)
@pytest.mark.parametrize("dtype", FLOAT_TYPES)
def test_named_cases_are_close(kernels: Kernels, dtype: str):
    cases = [case for case in _NAMED if case.dtype == dtype]
    assert_nothing_wrong(cases, lambda case: _assert_close(kernels, case))


@sampled(3)
@given(setup=attention_setups())
def test_any_attention_is_close(kernels: Kernels, setup: AttentionSetup):
    _assert_close(kernels, replace(setup, scale=min(setup.scale, 1.0)).case())


@sampled(4)
@pytest.mark.parametrize("dtype", FLOAT_TYPES)
@pytest.mark.parametrize(
    "setup",
    [
        TILES,
        replace(TILES, is_causal=True),
        replace(TILES, rank=4, mask=MaskSetup("bool", pattern="blocks")),
        replace(TILES, mask=MaskSetup("float32", pattern="blind")),
        replace(TILES, kv_len=600, mask=MaskSetup(pattern="window")),  # begins of vectors
        replace(TILES, kv_len=301, head_dim=1, value_dim=1),
        replace(TILES, kv_len=1100, is_causal=True, filled=True),  # blocks of another size
    ],
    ids=str,
)
def test_tiles_are_close(kernels: Kernels, setup: AttentionSetup, dtype: str):
    _assert_close(kernels, replace(setup, dtype=dtype).case())


def test_weights_are_exact_but_for_their_rounding(kernels: Kernels):
    """Each row has a key at the score -n and one at 0. BOUND would hide a rough power of two."""
    exponents = np.arange(256)[:, None] / 32  # numbers of eight bits
    case = Case(
        name="powers_of_two",
        op="MoHAttention",
        why="two keys",
        attributes={"q_num_heads": 1, "kv_num_heads": 1, "scale": 1.0, "is_causal": 0},
        build=lambda _: (
            (exponents * np.log(2)).astype(np.float32)[None],
            np.array([[[0.0], [-1.0]]], np.float32),
            np.array([[[0.0], [1.0]]], np.float32),
            np.ones((1, 256, 1), np.float32),
        ),
    )
    (output,) = kernels.run(case)
    (reference,) = MOH_ATTENTION.reference(case.inputs(), case.attributes)
    np.testing.assert_allclose(output, reference, rtol=ROUNDING + 1.2e-4, atol=0)


def test_products_are_really_of_bfloat16(kernels: Kernels):
    case = TILES.case()
    exact = replace(kernels, compute_type="float32").run(case)[0]
    assert np.abs(kernels.run(case)[0] - exact).max() > 1e-4


@pytest.mark.parametrize("instruction_set", [n for n in INSTRUCTION_SETS if n not in BFLOAT16_SETS])
def test_other_instruction_sets_compute_in_float32(instruction_set: str):
    exact = kernels_of(instruction_set)
    for setup in (TILES, replace(TILES, dtype="bfloat16"), replace(TILES, seq_len=1)):
        case = setup.case()
        asked = replace(exact, compute_type="bfloat16").run(case)[0]
        assert asked.tobytes() == exact.run(case)[0].tobytes()
