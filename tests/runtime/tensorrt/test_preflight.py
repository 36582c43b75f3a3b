"""What is refused before a build: each limit, with layer, value, limit and what to do."""

from collections.abc import Callable

import onnx_ir as ir
import pytest

from moh_deploy.machine.gpu import DeviceCode
from moh_deploy.ops.cases import Case
from moh_deploy.ops.plugin_support import PLUGINS
from moh_deploy.runtime.tensorrt.messages import ParserError
from moh_deploy.runtime.tensorrt.preflight import (
    Rejection,
    refusal,
    refused_by_parser,
    refused_driver,
    refused_nodes,
    refused_targets,
    refused_types,
)
from moh_deploy.runtime.tensorrt.profiles import Span
from tests.nightly import sampled
from tests.ops.batches import Batch, assert_nothing_wrong, batches_of
from tests.ops.case_models import case_model
from tests.ops.cases import named_case


def _node(op: str, name: str) -> ir.Node:
    case = named_case(op, name)
    (node,) = ir.from_proto(case_model(case)).graph
    node.name = "blocks.0.attn"
    return node


def _attention() -> ir.Node:
    return _node("MoHAttention", "plain_rank3")


def _set(node: ir.Node, slot: int, shape: tuple[int | str, ...], dtype: str = "FLOAT") -> None:
    value = node.inputs[slot]
    value.shape, value.dtype = ir.Shape(shape), ir.DataType[dtype]


def _refusals(node: ir.Node, **spans: Span) -> list[str]:
    return [str(refused) for refused in refused_nodes([node], [spans] if spans else [])]


@sampled(8)
@pytest.mark.parametrize("batch", batches_of(PLUGINS), ids=str)
def test_every_contract_case_is_taken(batch: Batch):
    def refused(case: Case) -> str | None:
        (node,) = ir.from_proto(case_model(case)).graph
        return "; ".join(map(str, refused_nodes([node], []))) or None

    assert_nothing_wrong(batch.cases, refused)


def test_head_dim():
    node = _attention()
    heads = node.attributes["q_num_heads"].as_int()
    for slot in range(3):
        _set(node, slot, (2, 5, heads * 264))
    _set(node, 3, (2, 5, heads))
    head, value = _refusals(node)
    assert head.startswith("blocks.0.attn: head_dim is 264; expected up to 256. Run this layer by")
    assert value.startswith("blocks.0.attn: value_dim is 264; expected up to 256.")


def _retype(*slots: int, dtype: str) -> Callable[[ir.Node], None]:
    def change(node: ir.Node) -> None:
        for slot in slots:
            value = node.inputs[slot]
            value.dtype = ir.DataType[dtype]

    return change


def _widen(node: ir.Node) -> None:
    node.attributes.add(ir.AttrInt64("kernel_height", 201))
    node.attributes.add(ir.AttrInt64("kernel_width", 201))


MOST = PLUGINS["MoHAggregatedAttention"].limits["window_places"]
ATTENTION, ROUTER = ("MoHAttention", "plain_rank3"), ("MoHRouter", "two_stage")
MASK, FILLED = ("MoHAttention", "bool_mask_rank4"), ("MoHAttention", "filled_decode")
RANGES = ("MoHAttention", "ranges_window")


@pytest.mark.parametrize(
    ("case", "change", "said"),
    [
        (
            ROUTER,
            lambda node: _set(node, 0, (2, 5, 5000)),
            "routed_heads is 5000; expected up to",
        ),
        (ROUTER, lambda node: node.attributes.add(ir.AttrInt64("top_k", 100)), "top_k is 100"),
        (
            ("MoHAggregatedAttention", "plain"),
            _widen,
            f"window_places is 40401; expected up to {MOST}. Run this layer by its function:",
        ),
        (
            ATTENTION,
            _retype(0, 1, 2, 3, dtype="DOUBLE"),
            "Q is float64; expected float32, float16 or bfloat16.",
        ),
        (
            ATTENTION,
            _retype(3, dtype="FLOAT16"),
            "gates is float16; expected float32, as the inputs before it are.",
        ),
        (
            ATTENTION,
            lambda node: node.replace_input_with(2, None),
            "V is absent; expected a value.",
        ),
        (MASK, _retype(4, dtype="INT32"), "attn_mask is int32; expected bool, float32"),
        (
            MASK,
            lambda node: _set(node, 4, (1, 1, 1, 5, 5), "BOOL"),
            "attn_mask is of rank 5; expected 1, 2, 3 or 4.",
        ),
        (FILLED, _retype(5, dtype="INT32"), "nonpad_kv_seqlen is int32; expected int64."),
        (
            FILLED,
            lambda node: _set(node, 5, (2, 1), "INT64"),
            "nonpad_kv_seqlen is of rank 2; expected 1.",
        ),
        (RANGES, _retype(6, dtype="INT32"), "key_ranges is int32; expected int64."),
        (RANGES, lambda node: _set(node, 6, (7, 2), "INT64"), "key_ranges is of rank 2; expected"),
    ],
    ids=lambda value: value[:16] if isinstance(value, str) else None,
)
def test_node_beyond_what_its_plugin_takes_is_refused(
    case: tuple[str, str], change: Callable[[ir.Node], object], said: str
):
    node = _node(*case)
    assert _refusals(node) == []
    change(node)
    assert any(said in refusal for refusal in _refusals(node)), _refusals(node)


def test_sizes_at_the_largest_of_a_profile():
    node = _attention()
    heads = node.attributes["q_num_heads"].as_int()
    for slot in range(3):
        _set(node, slot, ("batch", "seq", heads * 8))
    _set(node, 3, ("batch", "seq", heads))
    assert _refusals(node, batch=Span(1, 1, 2**10), seq=Span(1, 1, 2**20)) == []
    (refused,) = _refusals(node, batch=Span(1, 1, 2**10), seq=Span(1, 1, 2**20 + 1))
    assert (
        "Q has 1073742848 rows at the largest sizes of a profile; expected up to 10737" in refused
    )


def test_compute_capability():
    code = DeviceCode((80, 86), (90,))
    targets = ["7.5", "8.0", "8.9", "12.0"]
    (refused,) = refused_targets(targets, runs_on=code.runs_on, has_code=str(code))
    assert refused.value == "compute capability 7.5"
    assert refused.limit == "what it has code for, 8.0, 8.6 and, by PTX, 9.0 and later"


def test_dtypes_that_tensorrt_has_not():
    (refused,) = refused_types({"x": "float64", "y": "float32", "i": "int64", "z": "float64"})
    assert (refused.layer, refused.value) == ("x, z", "of dtype float64")


def test_words_of_the_parser():
    known, unknown = refused_by_parser(
        [ParserError("resize", "Resize", "no such mode"), ParserError("", "", "false")], "TensorRT"
    )
    assert str(known).startswith(
        "resize: Resize; expected what the parser of TensorRT takes (no such mode)."
    )
    assert str(unknown).startswith("model.onnx: a part of it; expected what the parser of")


def test_all_of_it_is_said_at_once():
    error = refusal([Rejection("a", "v", "l", "Do."), Rejection("b", "w", "m", "Go.")], title="T")
    assert error.exit_code == 6
    assert error.message == (
        "T cannot build this package, for 2 reasons:"
        "\n  - a: v; expected l. Do.\n  - b: w; expected m. Go."
    )


@pytest.mark.parametrize(
    ("driver", "needed", "is_refused"),
    [
        *[("12.4", 13, True), ("13.0", 13, False), ("13.2", 13, False), ("12.4", 12, False)],
        (None, 13, False),  # it does not matter
    ],
)
def test_old_drivers(driver: str | None, needed: int, is_refused: bool):
    found = [str(refused) for refused in refused_driver(driver, needed=needed)]
    assert bool(found) == is_refused
    if found:
        assert found[0].startswith(
            "libmoh_plugin.so: the NVIDIA driver takes CUDA 12.4; expected 13.0 or later, with"
            " which the library was compiled. Update the driver (580 or later takes CUDA 13"
        )
