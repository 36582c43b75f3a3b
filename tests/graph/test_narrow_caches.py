from __future__ import annotations

import onnx_ir as ir
import pytest

from moh_deploy.graph.precision_casts import narrow_caches
from moh_deploy.package import CacheBuffer, CachesInPlace
from tests.graph.models import model, node, value

CACHES = CachesInPlace((CacheBuffer("past", "present", 2),), "total - seq", "seq")
SHAPE = ["b", 2, "buffer", 4]


def lowered(low: ir.DataType = ir.DataType.FLOAT16) -> ir.Model:
    """A cache in float32 that is cast, written into, and cast back; a product of what was cast."""
    past, present = value("past", SHAPE), value("present", SHAPE)
    new, at = value("new", ["b", 2, "s", 4], low), value("at", ["b"], ir.DataType.INT64)
    narrow, written = value("past.low", SHAPE, low), value("present.low", SHAPE, low)
    seen = value("seen", SHAPE, low)
    nodes = [
        node("Cast", [past], narrow, {"to": int(low)}),
        node("TensorScatter", [narrow, new, at], written, {"axis": 2}),
        node("Relu", [written], seen),
        node("Cast", [written], present, {"to": int(ir.DataType.FLOAT)}),
    ]
    return model([past, new, at], [present, seen], nodes)


def test_cache_is_kept_as_it_is_written():
    made = lowered()
    assert narrow_caches(made, CACHES) == {"past": "float16", "present": "float16"}
    assert [one.op_type for one in made.graph] == ["TensorScatter", "Relu"]
    assert [one.name for one in made.graph.outputs] == ["present", "seen"]
    assert made.graph.inputs[0].dtype == made.graph.outputs[0].dtype == ir.DataType.FLOAT16
    assert made.graph[1].inputs[0] is made.graph.outputs[0]


@pytest.mark.parametrize("kept", ["past", "present", "what is written"])
def test_cache_that_something_reads_in_float32_stays(kept: str):
    made = lowered()
    past = made.graph.inputs[0]
    if kept == "past":
        made.graph.append(ir.node("Relu", [past]))
    elif kept == "what is written":
        made.graph.append(ir.node("Relu", [made.graph.outputs[0]]))
    else:
        made.graph.outputs[0] = made.graph[1].outputs[0]
        made.graph.outputs[0].name = "present"
    before = [one.op_type for one in made.graph]
    assert narrow_caches(made, CACHES) == {}
    assert [one.op_type for one in made.graph] == before
