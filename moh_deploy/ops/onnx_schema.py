"""The ops in terms of the onnx package: operator schemas and nodes."""

import atexit
from collections.abc import Sequence
from functools import partial

import onnx

from moh_deploy.errors import ExportError
from moh_deploy.ops import OPS
from moh_deploy.ops.spec import (
    PLUGIN_ATTRIBUTES,
    Attributes,
    AttributeValue,
    OpSpec,
    TensorType,
    TensorTypes,
)

# Dtype names of this package to and from the element types of ONNX.

ELEMENT_TYPES = {
    "float32": onnx.TensorProto.FLOAT,
    "float16": onnx.TensorProto.FLOAT16,
    "bfloat16": onnx.TensorProto.BFLOAT16,
    "bool": onnx.TensorProto.BOOL,
    "int64": onnx.TensorProto.INT64,
    "uint8": onnx.TensorProto.UINT8,
}
_DTYPES: dict[int, str] = {element: dtype for dtype, element in ELEMENT_TYPES.items()}


def to_type_proto(type_: TensorType) -> onnx.TypeProto:
    """Return the ONNX type of a value; an unknown size stays unknown."""
    return onnx.helper.make_tensor_type_proto(ELEMENT_TYPES[type_.dtype], type_.shape)


def from_type_proto(proto: onnx.TypeProto | None) -> TensorType | None:
    """Return dtype and shape of an ONNX type, or None where the rank is not known.

    An element type that no op takes is named by its ONNX name, for the error message.
    """
    if proto is None or not proto.tensor_type.HasField("shape"):
        return None
    element = proto.tensor_type.elem_type
    dtype = _DTYPES.get(element) or onnx.TensorProto.DataType.Name(element).lower()
    dims = proto.tensor_type.shape.dim
    shape = (d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in dims)
    return TensorType(dtype, tuple(shape))


_ONNX_TYPES = {dtype: f"tensor({dtype})" for dtype in ELEMENT_TYPES} | {"float32": "tensor(float)"}
_ATTRIBUTE_TYPES = {
    "int": onnx.defs.OpSchema.AttrType.INT,
    "float": onnx.defs.OpSchema.AttrType.FLOAT,
    "string": onnx.defs.OpSchema.AttrType.STRING,
}


def register_schemas() -> None:
    """Register the schema of every op with onnx, once a process; a second call changes nothing.

    Tools that look up the schema of a node, such as the PyTorch exporter, refuse an unknown op.
    """
    for spec in OPS.values():
        if not onnx.defs.has(spec.name, domain=spec.domain):
            schema = _schema(spec)
            # Without it, a registered schema would hide the shapes that the function body implies.
            schema.set_type_and_shape_inference_function(partial(_infer, spec))
            onnx.defs.register_schema(schema)
            atexit.register(_deregister_schema, spec)


def make_node(
    op_name: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: AttributeValue
) -> onnx.NodeProto:
    """Make a node with every attribute of its op, and those by which TensorRT finds the plugin.

    Args:
        inputs: Names of the inputs; "" stands for an absent one.

    Raises:
        ExportError: The op is unknown, or an attribute is unknown, missing or of the wrong type.
    """
    if op_name not in OPS:
        raise ExportError(f"unknown op '{op_name}'; expected one of {', '.join(OPS)}.")
    spec = OPS[op_name]
    if len(outputs) != len(spec.outputs):
        raise ExportError(f"{op_name}: {len(outputs)} outputs; expected {len(spec.outputs)}.")
    # A function has parameters up to its last present one only.
    last = max((index for index, name in enumerate(inputs) if name), default=-1)
    node = onnx.helper.make_node(op_name, inputs[: last + 1], outputs, domain=spec.domain)
    values = {**spec.complete(attributes), **PLUGIN_ATTRIBUTES}
    node.attribute.extend(onnx.helper.make_attribute(name, v) for name, v in values.items())
    return node


def _deregister_schema(spec: OpSpec) -> None:
    """Take a schema back: some versions of onnx hang at exit where one still holds a callback."""
    if onnx.defs.has(spec.name, domain=spec.domain):
        onnx.defs.deregister_schema(spec.name, spec.version, spec.domain)


def _infer(spec: OpSpec, context: onnx.shape_inference.InferenceContext) -> None:
    """Set the output types of a node from the shape rule, once the rank of each input is known."""
    present = [context.has_input(index) for index in range(context.get_num_inputs())]
    inputs = [
        from_type_proto(context.get_input_type(index)) if there else None
        for index, there in enumerate(present)
    ]
    # onnx before 1.23 says that an input is not there if nothing is known of it.
    given = [
        there or not op_input.optional
        for there, op_input in zip(present, spec.inputs, strict=False)
    ]
    if any(flag and type_ is None for flag, type_ in zip(given, inputs, strict=True)):
        return
    values: dict[str, AttributeValue] = {}
    for name in (attribute.name for attribute in spec.attributes):
        proto = context.get_attribute(name)
        if proto is not None:
            value = onnx.helper.get_attribute_value(proto)
            values[name] = value.decode() if isinstance(value, bytes) else value
    outputs = spec.shape_rule(inputs, spec.complete(values))
    for index, type_ in enumerate(outputs):
        context.set_output_type(index, to_type_proto(type_))


def _schema(spec: OpSpec) -> onnx.defs.OpSchema:
    parameter, attribute = onnx.defs.OpSchema.FormalParameter, onnx.defs.OpSchema.Attribute
    option, make = onnx.defs.OpSchema.FormalParameterOption, onnx.helper.make_attribute
    types = {given.constraint: given.types for given in spec.inputs}
    own = [
        attribute(a.name, _ATTRIBUTE_TYPES[a.type], a.doc, required=True)
        if a.default is None
        else attribute(a.name, make(a.name, a.default), a.doc)
        for a in spec.attributes
    ]
    plugin = [
        attribute(name, make(name, value), "Read by TensorRT's parser.")
        for name, value in PLUGIN_ATTRIBUTES.items()
    ]
    return onnx.defs.OpSchema(
        spec.name,
        spec.domain,
        spec.version,
        doc=spec.doc,
        inputs=[
            parameter(
                given.name,
                given.constraint,
                given.doc,
                param_option=option.Optional if given.optional else option.Single,
            )
            for given in spec.inputs
        ],
        outputs=[parameter(output.name, "T", output.doc) for output in spec.outputs],
        type_constraints=[(name, [_ONNX_TYPES[t] for t in ts], "") for name, ts in types.items()],
        attributes=own + plugin,
    )


# A model of one node: the smallest thing that a runtime can run an op in.

_IR_VERSION = 10


def single_node_model(
    op_name: str,
    inputs: TensorTypes,
    attributes: Attributes,
    *,
    opset: int = 18,
    function: onnx.FunctionProto | None = None,
) -> onnx.ModelProto:
    """Build a model that runs one op on the graph's inputs.

    Args:
        inputs: Types of the inputs, None for an absent one. Graph inputs are named as the op's.
        function: The function body; by default the one that the op's spec builds for this node.
    """
    spec = OPS[op_name]
    attributes = spec.complete(attributes)
    named = list(zip((i.name for i in spec.inputs), inputs, strict=False))
    types = spec.shape_rule(inputs, attributes)
    node = make_node(
        op_name,
        [name if type_ is not None else "" for name, type_ in named],
        [output.name for output in spec.outputs],
        **attributes,
    )
    made = zip((output.name for output in spec.outputs), types, strict=True)
    graph_inputs, outputs = (
        [onnx.helper.make_value_info(name, to_type_proto(type_)) for name, type_ in pairs if type_]
        for pairs in (named, made)
    )
    graph = onnx.helper.make_graph([node], op_name, graph_inputs, outputs)
    body = function or spec.function(inputs, attributes, opset=opset)
    opsets = [
        onnx.helper.make_opsetid("", opset),
        onnx.helper.make_opsetid(spec.domain, spec.version),
        # Those that a body needs besides, too.
        *(opset for opset in body.opset_import if opset.domain not in ("", spec.domain)),
    ]
    return onnx.helper.make_model(
        graph, opset_imports=opsets, functions=[body], ir_version=_IR_VERSION
    )
