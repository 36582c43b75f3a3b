"""Types, shapes and formats: what a plugin says of its output, and which inputs it refuses."""

from dataclasses import replace

import numpy as np
import pytest

from moh_deploy.ops import OPS
from moh_deploy.ops.cases import Case
from tests.cuda.trt.case_runs import CaseRun
from tests.cuda.trt.host_plugin import CHW32, Harness, Plugin, Tensor
from tests.cuda.trt.test_attributes import GOOD, PLUGINS
from tests.nightly import sampled
from tests.ops.batches import Batch, assert_nothing_wrong, batches_of

pytestmark = pytest.mark.usefixtures("kernels")

FLOATS = ("float32", "float16", "bfloat16")


def _create(harness: Harness, case: Case) -> tuple[Plugin, CaseRun]:
    run = CaseRun(case)
    plugin = harness.create(case.op, run.fields)
    assert plugin is not None, harness.log()
    return plugin, run


@sampled(4)
@pytest.mark.parametrize("batch", batches_of(PLUGINS), ids=str)
def test_types_and_shapes_are_those_of_the_shape_rule(harness: Harness, batch: Batch):
    def check(case: Case) -> None:
        plugin, run = _create(harness, case)
        *inputs, output = run.tensors
        assert plugin.output_type([t.dtype for t in inputs]) == output.dtype
        assert plugin.output_shape([t.opt for t in inputs]) == output.opt
        assert plugin.configure(run.tensors)
        assert plugin.on_shape_change(run.tensors)
        assert harness.log() == ""

    assert_nothing_wrong(batch.cases, check)


@pytest.mark.parametrize("op", PLUGINS)
def test_shapes_follow_from_sizes_that_nobody_knows_yet(harness: Harness, op: str):
    def check(case: Case) -> None:
        plugin, run = _create(harness, case)
        *inputs, output = run.tensors
        shapes = [t.opt for t in inputs]
        unknown = [[False] * len(shape) for shape in shapes]
        assert plugin.output_shape(shapes, known=unknown) == output.opt

    assert_nothing_wrong(Batch(op, "float32").cases, check)


def _attention(
    shapes: tuple[tuple[int, ...], ...] = ((2, 9, 48), (2, 5, 24), (2, 5, 24), (2, 9, 6)),
) -> list[Tensor]:
    output = (*shapes[0][:-1], shapes[2][-1] * (2 if len(shapes[0]) == 3 else 1))
    return [Tensor("float16", shape) for shape in (*shapes, output)]


def _router() -> list[Tensor]:
    shapes = ((2, 9, 5), (2, 9, 2), (2, 9, 2), (2, 9, 7))
    return [Tensor("float16", shape) for shape in shapes]


def _aggregated() -> list[Tensor]:
    image, pooled = (2, 35, 24), (2, 4, 24)
    constants = ((3, 8), (3, 35), (3, 15), (3, 35, 4), (3, 8, 15), (3, 15))
    shapes = (image, image, image, pooled, pooled, (2, 35, 3), *constants, image)
    return [Tensor("float16", shape) for shape in shapes]


TENSORS = {
    "MoHRouter": _router,
    "MoHAttention": _attention,
    "MoHAggregatedAttention": _aggregated,
}


@pytest.mark.parametrize("op", PLUGINS)
def test_the_tensors_of_these_tests_are_right(harness: Harness, op: str):
    plugin, tensors = harness.create(op, GOOD[op]), TENSORS[op]()
    assert plugin.configure(tensors)
    assert plugin.output_shape([t.opt for t in tensors[:-1]]) == tensors[-1].opt


BAD_SHAPES = [
    ("MoHRouter", 0, (2, 9), "routed_logits is [2, 9], of rank 2; expected 3."),
    ("MoHRouter", 1, (2, 9, 3), "last size of shared_logits is 3; expected 2."),
    ("MoHRouter", 1, (2, 8, 2), "length of shared_logits is 8; expected 9."),
    ("MoHRouter", 2, (2, 9, 3), "last size of stage_logits is 3; expected 2."),
    ("MoHRouter", 0, (2, 9, 2), "field top_k is 3; expected at most the 2 heads of routed_logits."),
    ("MoHAttention", 0, (9, 48), "Q is [9, 48], of rank 2; expected 3 or 4."),
    ("MoHAttention", 1, (2, 3, 5, 8), "K is [2, 3, 5, 8], of rank 4; expected 3, as the inputs"),
    ("MoHAttention", 0, (2, 9, 50), "last size of Q is 50; expected a multiple of its 6 heads."),
    ("MoHAttention", 1, (3, 5, 24), "batch size of K is 3; expected 2."),
    ("MoHAttention", 1, (2, 5, 27), "head size of K is 9; expected 8."),
    ("MoHAttention", 2, (2, 6, 24), "length of V is 6; expected 5."),
    ("MoHAttention", 3, (2, 9, 5), "number of heads of gates is 5; expected 6."),
    ("MoHAttention", 3, (2, 9, 6, 1), "gates is [2, 9, 6, 1], of rank 4; expected 3."),
    ("MoHAggregatedAttention", 0, (2, 36, 24), "number of tokens (height * width) of Q is 36;"),
    ("MoHAggregatedAttention", 4, (2, 5, 24), "number of pooled tokens of pooled_V is 5;"),
    ("MoHAggregatedAttention", 8, (3, 9), "number of window places of window_bias is 9;"),
    ("MoHAggregatedAttention", 10, (3, 7, 15), "head size of window_tokens is 7; expected 8."),
    ("MoHAggregatedAttention", 5, (2, 35, 4), "number of heads of gates is 4; expected 3."),
]


def test_profile_reaches_no_further_than_all_inputs_do(harness: Harness):
    """TensorRT finds the ends of `total - past` below zero and beyond all tokens."""
    ends = [((2, 1, 48), (2, 16, 48)), *[((2, 4, 24), (2, 5, 24))] * 2, ((2, 1, 6), (2, 16, 6))]
    ends += [((1, 1, 1, 4), (1, 1, 1, 5)), ((2, 1, 48), (2, 16, 48))]
    usual = [(2, 9, 48), (2, 5, 24), (2, 5, 24), (2, 9, 6), (1, 1, 1, 5), (2, 9, 48)]
    exact = [
        Tensor("float16", opt, low, high) for opt, (low, high) in zip(usual, ends, strict=True)
    ]
    wide = list(exact)
    wide[0] = Tensor("float16", (2, 9, 48), (2, 0, 48), (2, 33, 48))
    wide[4] = Tensor("float16", (1, 1, 1, 12), (1, 1, 1, -3), (1, 1, 1, 99))
    plugin = harness.create("MoHAttention", GOOD["MoHAttention"])
    assert plugin.configure(wide), harness.log()
    assert plugin.workspace_bytes(wide) == plugin.workspace_bytes(exact)
    # Ends that no size lies between are still refused.
    wide[0] = Tensor("float16", (2, 20, 48), (2, 20, 48), (2, 33, 48))
    assert not plugin.configure(wide)
    assert "length of gates is 1; expected 20." in harness.log()


@pytest.mark.parametrize(("op", "index", "shape", "message"), BAD_SHAPES)
def test_a_shape_that_does_not_fit_is_refused_at_each_step(
    harness: Harness, op: str, index: int, shape: tuple[int, ...], message: str
):
    plugin, tensors = harness.create(op, GOOD[op], layer="l"), TENSORS[op]()
    tensors[index] = replace(tensors[index], opt=shape)
    steps = {
        "parse": lambda: plugin.output_shape([t.opt for t in tensors[:-1]]) is not None,
        "build": lambda: plugin.configure(tensors),
        "run": lambda: plugin.on_shape_change(tensors),
    }
    for name, step in steps.items():
        assert not step(), name
        log = harness.log()
        assert log.startswith(f"E {op} (l): "), name
        assert message in log, name


@pytest.mark.parametrize(("limit", "axis"), [("head_dim", 1), ("value_dim", 2)])
def test_heads_beyond_the_limit_are_refused_with_it(harness: Harness, limit: str, axis: int):
    plugin = harness.create("MoHAttention", GOOD["MoHAttention"])
    shapes = [[2, 9, 6 * 256], [2, 5, 3 * 256], [2, 5, 3 * 256], [2, 9, 6]]
    assert plugin.output_shape([tuple(s) for s in shapes]) is not None
    shapes[axis][2] = 3 * 257
    if axis == 1:
        shapes[0][2] = 6 * 257
    assert plugin.output_shape([tuple(s) for s in shapes]) is None
    assert f"{limit} is 257; the kernels have up to 256." in harness.log()


MASKS = [(5,), (1,), (9, 5), (9, 1), (1, 9, 5), (6, 1, 5), (2, 6, 9, 5), (2, 1, 1, 5)]


@pytest.mark.parametrize("shape", MASKS, ids=str)
@pytest.mark.parametrize("dtype", ["bool", *FLOATS])
def test_a_mask_may_be_bool_or_any_float_and_broadcasts(
    harness: Harness, dtype: str, shape: tuple[int, ...]
):
    plugin, tensors = harness.create("MoHAttention", GOOD["MoHAttention"]), _attention()
    tensors.insert(4, Tensor(dtype, shape))
    assert plugin.output_type([t.dtype for t in tensors[:-1]]) == "float16"
    assert plugin.configure(tensors), harness.log()


@pytest.mark.parametrize("shape", [(4,), (8, 5), (3, 9, 5), (3, 6, 9, 5), (1, 2, 6, 9, 5)], ids=str)
def test_a_mask_that_does_not_broadcast_is_refused(harness: Harness, shape: tuple[int, ...]):
    plugin, tensors = harness.create("MoHAttention", GOOD["MoHAttention"]), _attention()
    tensors.insert(4, Tensor("bool", shape))
    assert not plugin.configure(tensors)
    assert "attn_mask is [" in harness.log()


FILLED = {**GOOD["MoHAttention"], "present_inputs": 0b101111}


def _filled(dtype: str = "int64", shape: tuple[int, ...] = (2,)) -> list[Tensor]:
    *inputs, output = _attention()
    return [*inputs, Tensor(dtype, shape), output]


def test_lengths_of_sequences_are_int64_and_nothing_else(harness: Harness):
    plugin, tensors = harness.create("MoHAttention", FILLED), _filled()
    assert plugin.configure(tensors), harness.log()
    assert all(plugin.supports(position, tensors) for position in range(len(tensors)))
    assert not any(plugin.supports(i, [Tensor("int64", (2, 9, 48))] * 6) for i in (0, 3, 5))
    for dtype in ("int32", "float16", "bool"):
        tensors = _filled(dtype)
        assert not plugin.supports(4, tensors)
        assert plugin.output_type([t.dtype for t in tensors[:-1]]) is None
        assert f"nonpad_kv_seqlen is {dtype}; expected int64." in harness.log()


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3,), "batch size of nonpad_kv_seqlen is 3; expected 2."),
        ((2, 1), "nonpad_kv_seqlen is [2, 1], of rank 2; expected 1."),
    ],
)
def test_lengths_that_do_not_fit_are_refused(
    harness: Harness, shape: tuple[int, ...], message: str
):
    plugin = harness.create("MoHAttention", FILLED)
    assert not plugin.configure(_filled(shape=shape))
    assert message in harness.log()


RANGES = {**GOOD["MoHAttention"], "present_inputs": 0b1001111}


@pytest.mark.parametrize("shape", [(2, 9, 2), (1, 9, 2)], ids=str)
def test_sequences_may_share_their_ranges(harness: Harness, shape: tuple[int, ...]):
    plugin, tensors = harness.create("MoHAttention", RANGES), _filled(shape=shape)
    assert plugin.configure(tensors), harness.log()
    assert all(plugin.supports(position, tensors) for position in range(len(tensors)))


@pytest.mark.parametrize(
    ("dtype", "shape", "message"),
    [
        ("int64", (3, 9, 2), "batch size of key_ranges is 3; expected 1 or 2."),
        ("int64", (2, 5, 2), "length of key_ranges is 5; expected 9."),
        ("int64", (2, 9, 3), "last size of key_ranges is 3; expected 2."),
        ("int64", (2, 9), "key_ranges is [2, 9], of rank 2; expected 3."),
        ("int32", (2, 9, 2), "key_ranges is int32; expected int64."),
    ],
)
def test_ranges_that_do_not_fit_are_refused(
    harness: Harness, dtype: str, shape: tuple[int, ...], message: str
):
    plugin, tensors = harness.create("MoHAttention", RANGES), _filled(dtype, shape)
    assert not plugin.configure(tensors)
    assert plugin.output_type([t.dtype for t in tensors[:-1]]) is None or dtype == "int64"
    assert message in harness.log()


@pytest.mark.parametrize("op", PLUGINS)
@pytest.mark.parametrize("dtype", ["int32", "int8", "int64", "bool"])
def test_another_dtype_is_refused_with_its_name(harness: Harness, op: str, dtype: str):
    plugin, count = harness.create(op, GOOD[op]), len(TENSORS[op]()) - 1
    assert plugin.output_type([dtype] * count) is None
    assert f"is {dtype}; expected float32, float16 or bfloat16." in harness.log()


@pytest.mark.parametrize("op", PLUGINS)
def test_mixed_dtypes_are_refused(harness: Harness, op: str):
    plugin, count = harness.create(op, GOOD[op]), len(TENSORS[op]()) - 1
    for odd in range(1, count):
        types = ["float16"] * count
        types[odd] = "float32"
        assert plugin.output_type(types) is None
        name = OPS[op].inputs[odd].name
        assert f"{name} is float32; expected float16, as the inputs before it are." in harness.log()


@pytest.mark.parametrize("op", PLUGINS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_linear_tensors_of_one_dtype_are_supported_and_nothing_else(
    harness: Harness, op: str, dtype: str
):
    plugin = harness.create(op, GOOD[op])
    tensors = [replace(t, dtype=dtype) for t in TENSORS[op]()]
    other = "float32" if dtype == "float16" else "float16"
    for position in range(len(tensors)):
        assert plugin.supports(position, tensors)
        for change in ({"format": CHW32}, {"dtype": "int32"}, {"dtype": "bool"}, {"dtype": other}):
            if position == 0 and change == {"dtype": other}:
                continue
            odd = list(tensors)
            odd[position] = replace(tensors[position], **change)
            assert not plugin.supports(position, odd), (position, change)
    assert harness.log() == ""  # TensorRT asks for what it pleases: a no is no error


def test_a_mask_is_supported_in_a_dtype_of_its_own(harness: Harness):
    plugin, tensors = harness.create("MoHAttention", GOOD["MoHAttention"]), _attention()
    tensors.insert(4, Tensor("bool", (9, 5)))
    assert plugin.supports(4, tensors)
    assert plugin.supports(5, tensors)
    tensors[4] = Tensor("float32", (9, 5))
    assert plugin.supports(4, tensors)
    tensors[4] = Tensor("int32", (9, 5))
    assert not plugin.supports(4, tensors)


ABSENT = [
    ("MoHRouter", {"top_k": 0}, [1, 2], True),
    ("MoHRouter", {}, [0, 2], True),
    ("MoHRouter", {"top_k": 0}, [0, 1], False),  # routed_logits, and nothing to choose
    ("MoHRouter", {"num_shared_heads": 0}, [1], False),
    ("MoHRouter", {"gate_mode": "mask"}, [0, 1], False),
    ("MoHAttention", {}, [0, 1, 2], False),
    ("MoHAggregatedAttention", {}, [0, 1, 2, 3, 4, 5, 8, 11], True),
    ("MoHAggregatedAttention", {}, [0, 1, 2, 3, 4, 6, 7, 8], False),
]


@pytest.mark.parametrize(("op", "fields", "present", "good"), ABSENT)
def test_absent_inputs_in_between_are_named_by_a_field(
    harness: Harness, op: str, fields: dict, present: list[int], good: bool
):
    bits = sum(1 << i for i in present)
    plugin = harness.create(op, {**GOOD[op], **fields, "present_inputs": bits})
    tensors = TENSORS[op]()
    shapes = [tensors[i].opt for i in present]
    assert (plugin.output_shape(shapes) is not None) == good, harness.log()


@pytest.mark.parametrize("bits", [0b0101, 0b11111, 0b111, 1 << 20, -1])
def test_a_field_that_counts_other_inputs_is_refused(harness: Harness, bits: int):
    plugin = harness.create("MoHAttention", {**GOOD["MoHAttention"], "present_inputs": bits})
    assert plugin.output_type(["float16"] * 4) is None
    assert f"there are 4 inputs, and field present_inputs is {bits};" in harness.log()


def test_too_many_inputs_are_refused(harness: Harness):
    plugin = harness.create("MoHRouter", GOOD["MoHRouter"])
    assert plugin.output_type(["float16"] * 4) is None
    assert "there are 4 inputs" in harness.log()


def test_sizes_beyond_what_kernels_count_are_refused(harness: Harness):
    plugin = harness.create("MoHRouter", GOOD["MoHRouter"])
    huge = 2**30 + 1
    assert plugin.output_shape([(huge, 9, 5), (huge, 9, 2), (huge, 9, 2)]) is None
    assert "batch size is 1073741825; expected up to 2^30." in harness.log()


def test_unknown_sizes_are_not_refused(harness: Harness):
    plugin = harness.create("MoHAttention", GOOD["MoHAttention"])
    shapes = [(3, 9, 50), (2, 5, 24), (2, 5, 24), (2, 9, 5)]
    unknown = [[False] * 3] * 4
    assert plugin.output_shape(shapes, known=unknown) is not None
    known = np.ones((4, 3), bool)
    assert plugin.output_shape(shapes, known=known.tolist()) is None
