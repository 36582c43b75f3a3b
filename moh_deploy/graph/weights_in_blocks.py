"""Store the weights of products and projections in blocks of few bits."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from moh_deploy.graph.integer_policy import PROJECTIONS
from moh_deploy.graph.load_model import add_body, import_domains, store_array
from moh_deploy.ops import OPS, op_names
from moh_deploy.ops.nbits_product import ACCURACY_LEVEL, BLOCK, CONTRIB_DOMAIN, RANKS
from moh_deploy.ops.op_names import KERNEL_DOMAIN, numbered_domain
from moh_deploy.ops.spec import PLUGIN_ATTRIBUTES, Attributes, TensorType
from moh_deploy.system.npz import Array

_NBITS = {
    op_names.QUERY_PROJECTION: op_names.QUERY_PROJECTION_NBITS,
    op_names.OUTPUT_PROJECTION: op_names.OUTPUT_PROJECTION_NBITS,
}
_OURS = (op_names.MATMUL_NBITS, *_NBITS.values())


@dataclass(frozen=True)
class BlockWeight:
    """A weight [K, N] in blocks of 32 rows."""

    packed: Array  # uint8, [N, ceil(K / 32), 4 * bits]
    scales: Array  # [N, ceil(K / 32)]
    bits: int


Quantizer = Callable[[Array, int], BlockWeight]
"""Rounds a weight [K, N] to so many bits."""


def matmul_nbits_attributes(rows: int, columns: int, *, bits: int) -> dict[str, int]:
    """Return the attributes of a MatMulNBits with a weight [rows, columns]."""
    numbers = {"K": rows, "N": columns, "bits": bits, "block_size": BLOCK}
    return {**numbers, "accuracy_level": ACCURACY_LEVEL}


def store_in_blocks(model: ir.Model, bits: Mapping[str, int], quantize: Quantizer) -> bool:
    """Replace products, and projections in 4 bits, by those with weights in blocks.

    A product of another rank than ours take becomes a MatMulNBits of ONNX Runtime. Nodes keep their
    names, and values theirs. A weight that several products read is stored once.

    Args:
        model: Every node stands in its main graph, those of ours in the domain `moh` or
            `moh.dense`; `choose_layers` runs afterwards.
        bits: Name of each MatMul and projection to the bits of its weight.
        quantize: Rounds a weight.
    """
    found = [node for node in model.graph if node.name in bits]
    stored: dict[tuple[ir.Value, int], tuple[ir.Value, ir.Value, int, int]] = {}
    for node in found:
        weight, number = node.inputs[1], bits[node.name or ""]
        assert weight is not None
        if (weight, number) not in stored:
            stored[weight, number] = _store(model, weight, number, quantize)
        replaced = _projection if node.op_type in PROJECTIONS else _product
        replaced(node, number, *stored[weight, number])
    for weight, _ in stored:
        if not weight.uses():
            model.graph.initializers.pop(weight.name or "", None)
    if found:
        model.opset_imports[CONTRIB_DOMAIN] = 1
    _arrange_bodies(model)
    return bool(found)


def _store(
    model: ir.Model, weight: ir.Value, bits: int, quantize: Quantizer
) -> tuple[ir.Value, ir.Value, int, int]:
    """Return the packed weight, its scales, and its numbers of rows and columns."""
    assert weight.const_value is not None
    array = np.ascontiguousarray(weight.const_value.numpy())
    made = quantize(array, bits)
    packed = store_array(model.graph, f"{weight.name}.int{bits}", made.packed)
    scales = store_array(model.graph, f"{weight.name}.int{bits}.scales", made.scales)
    return packed, scales, array.shape[0], array.shape[1]


def _product(
    node: ir.Node, bits: int, packed: ir.Value, scales: ir.Value, rows: int, columns: int
) -> None:
    x = node.inputs[0]
    assert x is not None
    if x.shape is not None and len(x.shape) in RANKS:
        numbers = {"in_features": rows, "out_features": columns, "bits": bits}
        made = _ours(op_names.MATMUL_NBITS, [x, packed, scales], numbers, node.name)
    else:
        numbers = matmul_nbits_attributes(rows, columns, bits=bits)
        attributes = [ir.AttrInt64(name, number) for name, number in numbers.items()]
        inputs = [x, packed, scales]
        made = ir.Node(CONTRIB_DOMAIN, "MatMulNBits", inputs, attributes, name=node.name)
    _put(node, made)


def _projection(
    node: ir.Node, bits: int, packed: ir.Value, scales: ir.Value, rows: int, columns: int
) -> None:
    assert bits == 4, "a projection with gates has weights of 4 bits"
    x, _, gates, bias = (*node.inputs, None)[:4]
    values = {
        "num_heads": node.attributes["num_heads"].value,
        "in_features": rows,
        "out_features": columns,
    }
    inputs = [x, packed, gates, scales, *([] if bias is None else [bias])]
    _put(node, _ours(_NBITS[node.op_type], inputs, values, node.name))


def _ours(
    op: str, inputs: Sequence[ir.Value | None], numbers: Mapping[str, int], name: str | None
) -> ir.Node:
    attributes = [
        *(ir.AttrInt64(name, number) for name, number in numbers.items()),
        *(ir.AttrString(name, text) for name, text in PLUGIN_ATTRIBUTES.items()),
    ]
    return ir.Node(KERNEL_DOMAIN, op, inputs, attributes, name=name)


def _put(node: ir.Node, made: ir.Node) -> None:
    (result,) = node.outputs
    assert node.graph is not None
    made.outputs[0].type, made.outputs[0].shape = result.type, result.shape
    ir.convenience.replace_nodes_and_values(
        node.graph, node, [node], [made], [result], [made.outputs[0]]
    )


def _arrange_bodies(model: ir.Model) -> None:
    """Give the new nodes their bodies, and drop unused ones."""
    numbers: dict[tuple[str, str], int] = {}
    for node in model.graph:
        if node.domain == KERNEL_DOMAIN and node.op_type in _OURS:
            spec = OPS[node.op_type]
            attributes = {
                attribute.name: int(node.attributes[attribute.name].value)
                for attribute in spec.attributes
            }
            inputs = _types(node.op_type, attributes, biased=len(node.inputs) > 4)
            key = node.op_type, spec.variant(inputs, attributes).key()
            # A body is found by domain and name: each has a domain of its own, by first use.
            of_op = [number for number in numbers if number[0] == node.op_type]
            number = numbers.setdefault(key, len(of_op) + 1)
            node.domain = numbered_domain(KERNEL_DOMAIN, number)
            add_body(model, spec, node, inputs, attributes, opset=model.opset_imports[""])
    used = {node.op_identifier() for node in model.graph.all_nodes()}
    for identifier in [function for function in model.functions if function[1] in PROJECTIONS]:
        if identifier not in used:
            del model.functions[identifier]
    import_domains(model)


def _types(op: str, attributes: Attributes, *, biased: bool) -> list[TensorType]:
    """Return the types of what a node reads; batch and tokens are not known."""
    rows, columns = int(attributes["in_features"]), int(attributes["out_features"])
    blocks = -(-rows // BLOCK)
    x, scales = TensorType("float32", (None, None, rows)), TensorType("float32", (columns, blocks))
    packed = TensorType("uint8", (columns, blocks, BLOCK * int(attributes.get("bits", 4)) // 8))
    if op == op_names.MATMUL_NBITS:
        return [x, packed, scales]
    gates = TensorType("float32", (None, None, int(attributes["num_heads"])))
    bias = [TensorType("float32", (columns,))] if biased else []
    return [x, packed, gates, scales, *bias]
