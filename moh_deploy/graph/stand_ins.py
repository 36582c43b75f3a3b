"""Put nodes of operators that torch.onnx does not know in the place of what stands in for them."""

import atexit
import base64

import onnx
import onnx_ir as ir

STAND_IN, STAND_IN_DOMAIN = "StandIn", "moh.stand_in"

_TYPES = (
    *("float", "double", "float16", "bfloat16", "bool"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
)


def register_stand_in() -> None:
    """Register the operator that stands in, once a process: torch.onnx looks up its schema."""
    if onnx.defs.has(STAND_IN, domain=STAND_IN_DOMAIN):
        return
    schema = onnx.defs.OpSchema
    every = [f"tensor({name})" for name in _TYPES]
    onnx.defs.register_schema(
        schema(
            STAND_IN,
            STAND_IN_DOMAIN,
            1,
            inputs=[
                schema.FormalParameter(
                    "inputs",
                    "T",
                    param_option=schema.FormalParameterOption.Variadic,
                    is_homogeneous=False,
                )
            ],
            outputs=[schema.FormalParameter("output_value", "U")],
            type_constraints=[("T", every, "any tensor"), ("U", every, "any tensor")],
            attributes=[
                schema.Attribute("node", schema.AttrType.STRING, "The node."),
                schema.Attribute("output", schema.AttrType.INT, "Which of its outputs."),
            ],
        )
    )
    atexit.register(onnx.defs.deregister_schema, STAND_IN, 1, STAND_IN_DOMAIN)


def replace_stand_ins(model: ir.Model) -> bool:
    """Put each node in the place of its stand-ins, which are one for each output that is read."""
    made: dict[tuple[object, ...], ir.Node] = {}
    stand_ins = [node for node in model.graph if node.domain == STAND_IN_DOMAIN]
    for stand_in in stand_ins:
        encoded = stand_in.attributes["node"].as_string()
        key = (encoded, *map(id, stand_in.inputs))
        if key not in made:
            made[key] = _node(model, stand_in, base64.b64decode(encoded))
            model.graph.insert_before(stand_in, made[key])
        value = made[key].outputs[stand_in.attributes["output"].as_int()]
        (old,) = stand_in.outputs
        name = old.name
        value.type, value.shape = old.type, old.shape
        old.replace_all_uses_with(value, replace_graph_outputs=True)
        model.graph.remove(stand_in, safe=True)
        value.name = name
    model.opset_imports.pop(STAND_IN_DOMAIN, None)
    return bool(stand_ins)


def _node(model: ir.Model, stand_in: ir.Node, encoded: bytes) -> ir.Node:
    """Return the node with the inputs of its stand-in, and import its domain."""
    alone: ir.Model = ir.from_proto(onnx.ModelProto.FromString(encoded))
    (node,) = alone.graph
    version = alone.opset_imports[node.domain]
    model.opset_imports.setdefault(node.domain, version)
    given = iter(stand_in.inputs)
    return ir.Node(
        node.domain,
        node.op_type,
        # Inputs that the node leaves out have no place among those of the stand-in.
        [None if value is None else next(given) for value in node.inputs],
        list(node.attributes.values()),
        num_outputs=len(node.outputs),
        name=node.name,
    )
