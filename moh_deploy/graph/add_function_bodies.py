"""Give every custom op a body in standard operators, for runtimes without the kernel."""

import onnx_ir as ir

from moh_deploy.ops import OPS, VERSION, is_moh_op
from moh_deploy.ops.op_names import KERNEL_DOMAIN, base_domain, numbered_domain
from moh_deploy.ops.spec import PLUGIN_ATTRIBUTES, Attributes, OpSpec, TensorType, TensorTypes

# Say which version of the domains of its functions a model is written for.


def import_domains(model: ir.Model) -> bool:
    """Import the domains in which a model has functions of ours, and `moh`; drop others of ours."""
    before = dict(model.opset_imports)
    used = {domain for domain, name, _ in model.functions if is_moh_op(domain, name)}
    for domain in filter(base_domain, before):
        del model.opset_imports[domain]
    for domain in sorted({KERNEL_DOMAIN, *used}):
        model.opset_imports[domain] = VERSION
    return dict(model.opset_imports) != before


def add_function_bodies(model: ir.Model, *, opset: int) -> bool:
    """Add one function for each op, or, where its nodes need different bodies, one for each body,
    in a domain of its own: the first one's nodes stay in `moh`, the second one's move to `moh.2`.

    No overloads: many readers look functions up by domain and name, and take one for the other.
    """
    bodies = len(model.functions)
    for spec in OPS.values():
        own = (spec.domain, spec.name)
        # Key of each body to its number, by first use: 1 is `moh`, 2 is `moh.2`.
        numbers: dict[str, int] = {}
        for node in [n for n in model.graph.all_nodes() if (n.domain, n.op_type) == own]:
            # Nodes of one variant share a body; a variant is all that a body depends on.
            types, attributes = types_of_inputs(node), own_attributes(spec, node)
            number = numbers.setdefault(spec.variant(types, attributes).key(), len(numbers) + 1)
            node.domain = numbered_domain(spec.domain, number)
            add_body(model, spec, node, types, attributes, opset=opset)
    return import_domains(model) or len(model.functions) > bodies


def add_body(
    model: ir.Model,
    spec: OpSpec,
    node: ir.Node,
    types: TensorTypes,
    attributes: Attributes,
    *,
    opset: int,
) -> None:
    """Add the body of a node, unless its domain has it: bodies are found by domain and name."""
    if node.op_identifier() not in model.functions:
        proto = spec.function(types, attributes, opset=opset)
        proto.domain = node.domain
        function = ir.serde.deserialize_function(proto)
        model.functions[function.identifier()] = function


def drop_bodies(model: ir.Model) -> None:
    """Take the bodies of our nodes away, which stand in `moh` then, to be written anew."""
    for key in [key for key in model.functions if is_moh_op(*key[:2])]:
        del model.functions[key]
    for node in model.graph.all_nodes():
        if is_moh_op(node.domain, node.op_type):
            node.domain = KERNEL_DOMAIN


def types_of_inputs(node: ir.Node) -> TensorTypes:
    """Return dtypes and shapes of what a node reads, None for what it leaves out."""
    return [None if value is None else _type(value) for value in node.inputs]


def _type(value: ir.Value) -> TensorType:
    # A body is chosen by rank and dtype: the exporter has inferred both.
    assert value.shape is not None, f"{value.name} has no shape"
    assert value.dtype is not None, f"{value.name} has no dtype"
    dims = [dim if isinstance(dim, int) else dim.value for dim in value.shape]
    return TensorType(str(value.dtype.numpy()), tuple(dims))


def own_attributes(spec: OpSpec, node: ir.Node) -> Attributes:
    """Return the attributes that an op defines, of a node."""
    # What only a plugin reads takes no part in the meaning of the op.
    given = {name: attribute.value for name, attribute in node.attributes.items()}
    return spec.complete({name: given[name] for name in given if name not in PLUGIN_ATTRIBUTES})
