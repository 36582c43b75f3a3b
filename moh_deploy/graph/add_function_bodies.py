"""Give every custom op a body in standard operators, for runtimes without the kernel."""

from __future__ import annotations

import onnx_ir as ir

from moh_deploy.ops import OPS, VERSION, is_moh_op
from moh_deploy.ops.op_names import KERNEL_DOMAIN, base_domain, numbered_domain
from moh_deploy.ops.spec import PLUGIN_ATTRIBUTES, Attributes, OpSpec, TensorType, TensorTypes

# Say which version of the domains of its functions a model is written for.


def import_domains(model: ir.Model) -> bool:
    """Import the domains in which a model has functions of ours, and `moh`; drop others of ours."""
    before = dict(model.opset_imports)
    used = {domain for domain, name, _ in model.functions if is_moh_op(domain, name)}
    for domain in [
        opset_import for opset_import in model.opset_imports if base_domain(opset_import)
    ]:
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
        # Key of each body to its number, by first use: 1 is `moh`, 2 is `moh.2`.
        numbers: dict[str, int] = {}
        for node in _nodes_of(model, spec):
            # Nodes of one variant share a body; a variant is all that a body depends on.
            key = spec.variant(types_of_inputs(node), own_attributes(spec, node)).key()
            number = numbers.setdefault(key, len(numbers) + 1)
            node.domain = numbered_domain(spec.domain, number)
            _add(model, spec, node, opset)
    return import_domains(model) or len(model.functions) > bodies


def _nodes_of(model: ir.Model, spec: OpSpec) -> list[ir.Node]:
    own = (spec.domain, spec.name)
    return [node for node in model.graph.all_nodes() if (node.domain, node.op_type) == own]


def _add(model: ir.Model, spec: OpSpec, node: ir.Node, opset: int) -> None:
    # The key is domain and name, which is why every body has a domain of its own.
    if node.op_identifier() in model.functions:
        return
    proto = spec.function(types_of_inputs(node), own_attributes(spec, node), opset=opset)
    proto.domain = node.domain
    function = ir.serde.deserialize_function(proto)
    model.functions[function.identifier()] = function


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
