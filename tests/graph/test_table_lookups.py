"""Inputs that are looked up in tables."""

from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto, helper, parser

from moh_deploy.graph.table_lookups import table_rows


def graph(body: str, *, table: tuple[int, ...] = (10, 4)) -> onnx.GraphProto:
    text = f"g (int64[batch, seq] ids) => (float[a, b, c] y) {{ {body} }}"
    found = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]>{text}').graph
    size = 1
    for one in table:
        size *= one
    values = [0.0] * size
    found.initializer.append(helper.make_tensor("table", TensorProto.FLOAT, table, values))
    found.initializer.append(helper.make_tensor("small", TensorProto.INT8, table, [0] * size))
    return found


@pytest.mark.parametrize(
    ("body", "rows"),
    [
        ("y = Gather (table, ids)", 10),
        ("i = Cast <to = 6> (ids) j = Reshape (i, n) y = Gather (table, j)", 10),
        ("i = Concat <axis = 1> (class, ids) y = Gather (table, i)", 10),
        ("y = Gather <axis = 1> (table, ids)", 4),
        ("y = Gather <axis = -1> (table, ids)", 4),
        ("f = DequantizeLinear (small, scale) y = Gather (f, ids)", 10),
        ("t = Constant <value_floats = [1.0]> () y = Gather (t, ids)", None),
        ("i = Clip (ids, zero, nine) y = Gather (table, i)", None),
        ("i = Add (ids, one) y = Gather (table, i)", None),
        ("y = Gather (ids, n)", None),
    ],
)
def test_rows_of_the_table_are_found(body: str, rows: int | None):
    assert table_rows(graph(body)) == ({} if rows is None else {"ids": rows})


def test_the_smallest_of_several_tables_is_what_holds():
    both = graph("a = Gather (table, ids) b = Gather <axis = 1> (table, ids) y = Add (a, b)")
    assert table_rows(both) == {"ids": 4}


def test_weights_that_are_listed_as_inputs_are_no_inputs():
    text = "g (int64[n] ids) => (float[a, b] y) { y = Gather (table, ids) }"
    found = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]>{text}').graph
    found.initializer.append(helper.make_tensor("ids", TensorProto.INT64, [1], [0]))
    found.initializer.append(helper.make_tensor("table", TensorProto.FLOAT, [2, 1], [0.0, 0.0]))
    assert table_rows(found) == {}
