"""The inputs of an exported program (`.pt2`): the names, examples and dynamic axes in it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import sympy
import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, InputSpec, TensorArgument
from torch.utils._pytree import tree_leaves, tree_structure

from moh_deploy.config.dims import DimExpr, DynamicAxis, solve_sizes
from moh_deploy.errors import CheckpointError, ConfigError
from moh_deploy.frontend.fx.arrays import dtype_name, made_values
from moh_deploy.frontend.fx.containers import leaf_keys
from moh_deploy.frontend.load.model import ModelInput
from moh_deploy.system.suggest import shortened

# Take the inputs out of a program that are no tensors: None, a bool, a number.
#
# torch.export keeps them as placeholders, though the program was traced for their values and takes
# no others.


def is_bound(spec: InputSpec) -> bool:
    """Tell whether an input of a program is a constant."""
    return spec.kind is InputKind.USER_INPUT and isinstance(spec.arg, ConstantArgument)


def drop_bound_inputs(program: ExportedProgram) -> None:
    """Drop the placeholders of constant inputs; the others become positional arguments."""
    graph, signature = program.graph_module.graph, program.graph_signature
    bound = [spec for spec in signature.input_specs if is_bound(spec)]
    if not bound:
        return
    nodes = {node.name: node for node in graph.nodes if node.op == "placeholder"}
    for spec in bound:
        graph.erase_node(nodes[spec.arg.name])  # no node reads it: its value is in their arguments
        signature.input_specs.remove(spec)
    program.graph_module.recompile()
    names = [spec.arg.name for spec in signature.input_specs if spec.kind is InputKind.USER_INPUT]
    root = program.module_call_graph[0]
    assert root.signature is not None  # the call of the whole program has one
    in_spec = tree_structure(((0,) * len(names), {}))
    root.signature = replace(root.signature, in_spec=in_spec, forward_arg_names=names)
    if program.example_inputs is not None:
        leaves = tree_leaves(program.example_inputs)
        program.example_inputs = (tuple(leaf for leaf in leaves if isinstance(leaf, Tensor)), {})


_MADE_SIZE = 2


def inputs_from_program(
    program: torch.export.ExportedProgram,
) -> tuple[ModelInput, ...]:
    """Return the user inputs of a program, in the order of its placeholders, without constants
    (None, a bool, a number), which are part of it.

    They are called by their path, `past.0.key`. The values are the example that was stored with the
    program, else made. A program keeps its dynamic dimensions but not their names: a symbol of axis
    0 becomes `batch`, another one is named after its first place, such as `tokens_dim_1`.

    Raises:
        CheckpointError: An input is not a tensor, or a size is not a sum of symbols.
    """
    placeholders = _tensor_placeholders(program)
    dims = _named_dims(placeholders)
    leaves = tree_leaves(program.example_inputs or ())
    values = [leaf.detach() for leaf in leaves if isinstance(leaf, Tensor)]
    if len(values) != len(placeholders):
        hinted = solve_sizes(
            DynamicAxis(f"axis {axis} of input '{item.name}'", expr, hint)
            for item, axes in zip(placeholders, dims, strict=True)
            for axis, expr in axes.items()
            if (hint := item.hints[axis]) is not None
        )
        names = [expr.name for axes in dims for expr in axes.values()]
        sizes = {name: hinted.get(name, _MADE_SIZE) for name in names}
        values = []
        for item, axes in zip(placeholders, dims, strict=True):
            shape = (axes[i].evaluate(sizes) if i in axes else n for i, n in enumerate(item.shape))
            dtype = dtype_name(item.dtype)
            values.append(made_values(tuple(shape), dtype, seed=len(values)))
    return tuple(
        ModelInput(item.name, value, {axis: str(expr) for axis, expr in axes.items()})
        for item, value, axes in zip(placeholders, values, dims, strict=True)
    )


def unnamed_dims(
    program: torch.export.ExportedProgram, inputs: Sequence[ModelInput]
) -> dict[str, str]:
    """Return the unnamed dimensions and where they are: a program keeps no names.

    Args:
        inputs: The program's inputs, in order.

    Returns:
        Dimension name to its first place, as `--dynamic` has it: `x_dim_1` to `x:1`.
    """
    found: dict[str, str] = {}
    for own, item in zip(inputs_from_program(program), inputs, strict=True):
        axes = item.parsed_dims
        for axis, made in own.parsed_dims.items():
            if made.is_plain and made.name != "batch" and made.name == axes[axis].name:
                found.setdefault(made.name, f"{item.name}:{axis}")
    return found


def with_values(
    described: Sequence[ModelInput], given: Sequence[ModelInput]
) -> tuple[ModelInput, ...]:
    """Return the inputs of a program with other example values, names and dimension names.

    Args:
        described: The program's own.
        given: The user's, in this order, or in any if they have the names of the program's.

    Raises:
        ConfigError: The values do not fit the program: their number, dtype, rank, fixed sizes or
            dynamic axes.
    """
    if len(described) != len(given):
        raise ConfigError(
            f"the program has {len(described)} inputs ({', '.join(i.name for i in described)}),"
            f" but {len(given)} are given ({', '.join(i.name for i in given)})."
        )
    # Torch calls `past_0_key` what is `past.0.key` in the model.
    called = {item.name.replace(".", "_"): item for item in given}
    own_names = [item.name.replace(".", "_") for item in described]
    if called.keys() == set(own_names):
        given = [called[name] for name in own_names]
    pairs = list(zip(described, given, strict=True))
    names = _given_dim_names(pairs)
    inputs: list[ModelInput] = []
    for own, new in pairs:
        value = new.value
        dims = {
            axis: str(replace(expr, name=names.get(expr.name, expr.name)))
            for axis, expr in own.parsed_dims.items()
        }
        fits = value.ndim == own.value.ndim and all(
            axis in dims or value.shape[axis] == size for axis, size in enumerate(own.value.shape)
        )
        if not fits or value.dtype != own.value.dtype:
            expected = ", ".join(dims.get(i, str(n)) for i, n in enumerate(own.value.shape))
            raise ConfigError(
                f"input '{new.name}' is {value.dtype} {list(value.shape)}, but the program's"
                f" '{own.name}' is {own.value.dtype} [{expected}]."
            )
        inputs.append(ModelInput(new.name, value, dims))
    return tuple(inputs)


@dataclass(frozen=True)
class _Placeholder:
    """A tensor input; `shape` holds whole numbers and, for dynamic axes, expressions of symbols."""

    name: str
    dtype: torch.dtype
    shape: tuple[int | sympy.Expr, ...]
    hints: tuple[int | None, ...]


def _given_dim_names(pairs: Sequence[tuple[ModelInput, ModelInput]]) -> dict[str, str]:
    """Return what the user calls the dimensions of the program."""
    names: dict[str, str] = {}
    for own, new in pairs:
        program_dims = own.parsed_dims
        for axis, expr in new.parsed_dims.items():
            known = program_dims.get(axis)
            if known is None:
                raise ConfigError(
                    f"axis {axis} of input '{new.name}' is fixed in the program.",
                    hint="Export the program again with that axis dynamic.",
                )
            same_form = replace(known, name=expr.name) == expr
            if not same_form or names.setdefault(known.name, expr.name) != expr.name:
                own_name = names.get(known.name, known.name)
                raise ConfigError(
                    f"axis {axis} of input '{new.name}' is"
                    f" '{replace(known, name=own_name)}' in the program, not '{expr}'."
                )
    if len(set(names.values())) < len(names):
        raise ConfigError(
            f"one name is given to dimensions that the program keeps apart: {shortened(names)}."
        )
    return names


def _tensor_placeholders(program: torch.export.ExportedProgram) -> list[_Placeholder]:
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    found = []
    specs = program.graph_signature.input_specs
    own = [spec for spec in specs if spec.kind is InputKind.USER_INPUT]
    paths = _paths(program, [spec.arg.name for spec in own])
    for spec, name in zip(own, paths, strict=True):
        if is_bound(spec):
            continue
        if not isinstance(spec.arg, TensorArgument):
            raise CheckpointError(
                f"input '{name}' of the program is not a tensor but a {type(spec.arg).__name__}.",
                hint="Export the program again with tensors, None, bools and numbers as its only"
                " inputs.",
            )
        value = nodes[spec.arg.name].meta["val"]
        sizes = [None if isinstance(size, int) else size.node for size in value.shape]
        pairs = list(zip(value.shape, sizes, strict=True))
        shape = tuple(size if node is None else node.expr for size, node in pairs)
        hints = tuple(size if node is None else node.hint for size, node in pairs)
        found.append(_Placeholder(name, value.dtype, shape, hints))
    return found


def _paths(program: torch.export.ExportedProgram, given: list[str]) -> list[str]:
    """Return what leads to each input in the arguments: `past.0.key`, which torch calls
    `past_0_key`. Without its structure, or where two would be called the same, torch's names.
    """
    structure = program.call_spec.in_spec
    if structure is None or structure.num_leaves != len(given):
        return given
    paths: list[str] = []
    for (kind, root, *keys), name in zip(leaf_keys(structure), given, strict=True):
        if kind == "0":  # by position: the parameter's name is torch's, less the keys behind it
            ending = "".join(f"_{re.sub('[^a-zA-Z0-9]+', '_', key)}" for key in keys).lower()
            root = name[: len(name) - len(ending)]
            keys = keys if root and name.lower().endswith(ending) else []
            root = root if keys else name
        paths.append(".".join([root, *keys]))
    return paths if len(set(paths)) == len(paths) else given


def _named_dims(placeholders: Sequence[_Placeholder]) -> list[dict[int, DimExpr]]:
    parts: dict[tuple[str, int], _DimParts] = {}
    for item in placeholders:
        for axis, size in enumerate(item.shape):
            if not isinstance(size, int):
                parts[item.name, axis] = _dim_parts(size, f"axis {axis} of input '{item.name}'")
    names: dict[sympy.Expr, str] = {}
    # A symbol that stands alone somewhere is named after that place, not after a derived one.
    for plain in (True, False):
        for (name, axis), (root, multiplier, offset) in parts.items():
            is_plain = root.is_Symbol and (multiplier, offset) == (1, 0)
            if is_plain is plain and root not in names:
                own = re.sub(r"\W", "_", name, flags=re.ASCII)
                is_batch = axis == 0 and plain and "batch" not in names.values()
                names[root] = "batch" if is_batch else f"{own}_dim_{axis}"
    return [
        {
            axis: DimExpr(names[root], multiplier, offset)
            for (name, axis), (root, multiplier, offset) in parts.items()
            if name == item.name
        }
        for item in placeholders
    ]


# A size as `multiplier * root + offset`.
_DimParts = tuple[sympy.Expr, int, int]


def _dim_parts(size: sympy.Expr, place: str) -> _DimParts:
    """Take a size apart. A sum of several symbols, as the length of a mask over a cache and new
    tokens is, is a root of its own; see `Relations`."""
    symbols = sorted(size.free_symbols, key=str)
    polynomial = sympy.Poly(size, *symbols) if size.is_polynomial(*symbols) else None
    if polynomial is not None and polynomial.total_degree() == 1:
        multipliers = [int(polynomial.coeff_monomial(symbol)) for symbol in symbols]
        if min(multipliers) > 0:
            if len(symbols) > 1:
                return size, 1, 0
            return symbols[0], multipliers[0], int(polynomial.coeff_monomial(1))
    raise CheckpointError(
        f"{place} of the program has size '{size}'; only a sum of symbols, each times a whole"
        " number, and of a whole number is supported."
    )
