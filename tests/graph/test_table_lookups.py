"""Tables that a graph looks rows up in, and how it computes the indices."""

import onnx
import pytest
from onnx import TensorProto, helper, parser

from moh_deploy.graph.table_lookups import (
    SizeQuestion,
    TableLookup,
    index_model,
    size_questions,
    table_lookups,
)


def model(body: str, *, table: tuple[int, ...] = (10, 4)) -> onnx.ModelProto:
    """A model whose `table` has its shape alone, as large weights have it."""
    text = f"""
        <ir_version: 10, opset_import: ["" : 20]>
        g (int64[batch, seq] ids, float[batch, past, 4] cache, float[batch, seq] x)
            => (float[a, b, c] y)
            <int64 zero = {{0}}, int64 one = {{1}}, int64[1] last = {{-1}}, int64[1] n = {{1}}>
            {{ {body} }}"""
    found = parser.parse_model(text)
    shape_only = onnx.TensorProto(name="table", data_type=TensorProto.FLOAT, dims=table)
    small = helper.make_tensor("small", TensorProto.INT8, table, bytes(10 * 4), raw=True)
    found.graph.initializer.extend([shape_only, small])
    return found


def lookups(body: str, *, from_the_end: bool = False) -> list[TableLookup]:
    return list(table_lookups(model(body).graph, from_the_end=from_the_end))


@pytest.mark.parametrize(
    ("body", "table", "rows"),
    [
        ("y = Gather (table, ids)", "table", 10),
        ("i = Cast <to = 6> (ids) j = Reshape (i, n) y = Gather (table, j)", "table", 10),
        ("i = Concat <axis = 1> (n, ids) y = Gather (table, i)", "table", 10),
        ("y = Gather <axis = 1> (table, ids)", "table", 4),
        ("y = Gather <axis = -1> (table, ids)", "table", 4),
        ("y = GatherElements <axis = 1> (table, ids)", "table", 4),
        ("f = DequantizeLinear (small, x) y = Gather (f, ids)", "small", 10),
    ],
)
def test_ids_and_the_rows_of_the_table_are_found(body: str, table: str, rows: int):
    (found,) = lookups(body)
    assert (found.table, found.rows, found.least, found.origin) == (table, rows, 0, "ids")


def test_indices_that_are_computed_are_found():
    of_sizes = "s = Shape (x) l = Squeeze (s) i = Range (zero, l, one) y = Gather (table, i)"
    cases: dict[str, set[str]] = {
        "i = Add (ids, one) y = Gather (table, i)": {"ids"},
        "i = Clip (ids, zero, one) y = Gather (table, i)": {"ids"},
        "i = CumSum (ids, one) y = Gather (table, i)": {"ids"},
        "s = Size (cache) i = Add (ids, s) y = Gather (table, i)": {"ids"},
        of_sizes: set(),
    }
    for body, inputs in cases.items():
        (found,) = lookups(body)
        assert (found.inputs, found.origin) == (inputs, None)


def test_other_indices_are_left_to_the_runtime():
    for body in (
        "y = Gather (ids, n)",
        "t = Constant <value_floats = [1.0]> () y = Gather (t, ids)",  # of no known size
        "y = Gather (table, n)",
        "v, i = TopK (x, n) y = Gather (table, i)",  # floats decide: no caller can know
    ):
        assert lookups(body) == []
    of_large_weights = "i = Gather (table, ids) j = Cast <to = 7> (i) y = Gather (table, j)"
    assert [item.indices for item in lookups(of_large_weights)] == ["ids"]


def test_negative_indices_count_from_the_end_where_the_original_does_so():
    assert lookups("y = Gather (table, ids)", from_the_end=True)[0].least == -10
    # What PyTorch's `table[ids]` becomes.
    body = "i = Unsqueeze (ids, last) y = GatherND (table, i)"
    indexed = model(body)
    shape = helper.make_tensor_value_info("i", TensorProto.INT64, ["batch", "seq", 1])
    indexed.graph.value_info.append(shape)
    (found,) = table_lookups(indexed.graph, from_the_end=False)
    assert (found.rows, found.least) == (10, -10)


def test_weights_that_are_listed_as_inputs_are_no_inputs():
    text = "g (int64[n] ids) => (float[a, b] y) { y = Gather (table, ids) }"
    found = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]>{text}').graph
    found.initializer.append(helper.make_tensor("ids", TensorProto.INT64, [1], [0]))
    found.initializer.append(helper.make_tensor("table", TensorProto.FLOAT, [2, 1], [0.0, 0.0]))
    assert table_lookups(found, from_the_end=False) == ()


def test_model_of_the_indices_reads_ids_and_sizes_and_no_more():
    body = """
        s = Shape (cache) l = Gather (s, one) i = Add (ids, l) p = Gather (table, i)
        m = Relu (x) y = Mul (p, m)"""
    whole = model(body)
    found = index_model(whole, table_lookups(whole.graph, from_the_end=False))
    assert {value.name for value in found.graph.input} == {"ids", "s"}
    assert [node.op_type for node in found.graph.node] == ["Gather", "Add"]
    assert [value.name for value in found.graph.output] == ["i"]
    assert {weight.name for weight in found.graph.initializer} == {"one"}


def questions(body: str) -> list[SizeQuestion]:
    """The questions of operators on `x`, and on its sizes `batch` and `sizes`."""
    found = parser.parse_graph(
        "g (float[batch, 4] x) => () <int64 first = {0}, int64 five = {5}, int64 two = {2}>"
        f" {{ sizes = Shape (x) batch = Gather <axis = 0> (sizes, first) {body} }}"
    )
    return list(size_questions(found))


def test_equal_of_a_size_and_a_constant_is_a_question():
    (found,) = questions("is_five = Equal (batch, five)")
    assert (found.value, found.sizes) == ("is_five", (5,))
    constant = "six = Constant <value = int64 {6}> ()"
    (found,) = questions(f"{constant} twice = Mul (batch, two) is_six = Equal (twice, six)")
    assert found.sizes == (6,)


def test_what_depends_on_numbers_of_the_inputs_is_none():
    for body in ("q = Equal (x, five)", "q = Less (batch, five)", "q = Equal (two, five)"):
        assert questions(body) == []
