"""Load the model of a package to change it, with or without the bodies of its custom ops."""

from collections import Counter
from collections.abc import Collection

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, NameFixPass, ShapeInferencePass

from moh_deploy.errors import PackageError
from moh_deploy.graph.switch_by_size import without_switches
from moh_deploy.ops import OPS, VERSION, is_moh_op
from moh_deploy.ops.op_names import KERNEL_DOMAIN, base_domain, numbered_domain
from moh_deploy.ops.spec import PLUGIN_ATTRIBUTES, Attributes, OpSpec, TensorType, TensorTypes
from moh_deploy.package.onnx_package import OnnxPackage
from moh_deploy.system.npz import Array

# Replace nodes of custom ops by their bodies in standard operators.

_NO_BODY = "plugin"


def inline_functions(model: ir.Model, *, but: Collection[str]) -> bool:
    """Replace every node that has a body by it, but those of these names, and drop all bodies."""
    modified = bool(model.functions)
    # A body is found by domain, name and overload: a node with an overload of its own lacks it.
    kept = [node for node in model.graph if node.name in but]
    for node in kept:
        node.overload = _NO_BODY
    InlinePass()(model)
    model.functions.clear()
    for node in kept:
        node.overload = ""
    return modified


# Find out the dtype and shape of every value: a package holds those of inputs and outputs only.


def infer_types(model: ir.Model) -> bool:
    """Write dtypes, and shapes as far as they are known, onto the values of the graph.

    Raises:
        PackageError: A value has no dtype that onnx could infer.
    """

    def known() -> list[str]:
        values = (value for node in model.graph.all_nodes() for value in node.outputs)
        return [f"{value.type} {value.shape}" for value in values]

    before = known()
    ShapeInferencePass(check_type=False, data_prop=True)(model)
    for node in model.graph:
        for value in node.outputs:
            if value.dtype is None and value.name:
                raise PackageError(
                    f"model.onnx: the dtype of '{value.name}' ({node.op_type}) cannot be inferred."
                )
    return known() != before


def store_array(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    """Add an initializer, and return its value."""
    stored = np.ascontiguousarray(array).reshape(array.shape)  # which makes [1] of a number
    tensor = ir.tensor(stored, name=name)
    value = ir.Value(
        name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
    )
    graph.register_initializer(value)
    return value


# Drop the lines of source that torch's exporter notes at each node.

_STACK_TRACE = "pkg.torch.onnx.stack_trace"


def drop_stack_traces(model: ir.Model) -> bool:
    """Remove absolute paths and lines of the author's code: a package is handed to others."""
    nodes = [*model.graph.all_nodes()]
    nodes += [node for function in model.functions.values() for node in function.all_nodes()]
    traces = [node.metadata_props.pop(_STACK_TRACE, None) for node in nodes]
    return any(trace is not None for trace in traces)


def load_ir(package: OnnxPackage) -> ir.Model:
    """Return the model; its weights stay on the disk until they are read.

    Raises:
        PackageError: It is a file of ONNX, but no model: what it says contradicts itself.
    """
    try:
        model = ir.load(package.model_path)
    except Exception as error:  # onnx-ir fails in many ways at what it does not expect
        raise PackageError(
            f"{package.model_path} cannot be read as a model: {type(error).__name__}: {error}."
        ) from error
    drop_stack_traces(model)  # Packages of before 0.2 hold them.
    return model


# Write a package's model in standard operators only, for runtimes that know no functions.

_STANDARD = ("", "ai.onnx", "ai.onnx.ml")
"""The domains of ONNX itself; those for training have no place in a deployed model."""


def to_standard_operators(model: ir.Model) -> bool:
    """Replace every node of a function by its body, in branches too, and drop the functions.

    The opset stays, and so do metadata and all values of the main graph with their names, those
    that nothing reads too: the gates of a layer may be a view that is there to be looked at. An
    `If` that chooses by size how a layer runs goes: both branches have the same body.

    Raises:
        PackageError: An operator is no standard one and has no body, a body is written for another
            opset than the model, or bodies call each other in a circle.
    """
    modified = without_switches(model)
    try:
        modified |= inline_functions(model, but=())
    except (ValueError, ir.passes.PassError, ir.passes.InvariantError) as error:
        raise PackageError(
            f"model.onnx cannot be written without functions: {error}.",
            hint="Export the model again.",
        ) from error
    nodes = [node for node in model.graph.all_nodes() if node.domain not in _STANDARD]
    others = Counter(f"{node.domain}::{node.op_type}" for node in nodes)
    if others:
        listed = ", ".join(f"{name} ({count})" for name, count in sorted(others.items()))
        raise PackageError(
            "model.onnx has operators that are no standard ones and have no function body:"
            f" {listed}.",
            hint="They run only where a library has them. Export the model again.",
        )
    # A body's names are unique in the graph that it comes into, but not in the branches there.
    modified |= NameFixPass()(model).modified
    foreign = [domain for domain in model.opset_imports if domain not in _STANDARD]
    for domain in foreign:
        del model.opset_imports[domain]
    return modified or bool(foreign)


# Give every custom op a body in standard operators, for runtimes without the kernel.

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
