"""Trace a module with named dynamic dimensions, or say which one it fixes and where."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch.export import Dim, ExportedProgram

from moh_deploy.config.dims import DimExpr
from moh_deploy.errors import ExportError
from moh_deploy.frontend.fx.bound_inputs import drop_bound_inputs
from moh_deploy.frontend.inputs.examples import parsed_dims
from moh_deploy.frontend.load.call import positional, taking_tensors
from moh_deploy.frontend.load.model import LoadedModel, ModelInput
from moh_deploy.frontend.quiet import muted, no_warnings
from moh_deploy.frontend.specialisation import watch_specialisations

_SMALLEST_TRACED = 2

# Smallest and largest size of a dimension; None where there is no limit.
_Bounds = tuple[int | None, int | None]


def trace(model: LoadedModel, inputs: Sequence[ModelInput]) -> ExportedProgram:
    """Return the program of a model.

    Args:
        model: A module in eval mode, or a program that was traced elsewhere. It stays as it is: the
            program that is returned is there to be changed, and shares its weights.
        inputs: What the model's call takes, in its order; without a call, positional arguments.

    Raises:
        ExportError: If the model cannot be traced, or if it fixes a dimension that was declared
            dynamic.
    """
    if model.program is not None:
        program = _copied(model.program)
        drop_bound_inputs(program)
        return program
    assert model.module is not None
    call = model.call or positional([item.name for item in inputs])
    with taking_tensors(model.module, call) as names:
        program = _trace(model.module, inputs, names, bounds={})
    _check_dynamic(program, inputs)
    _check_read(program, inputs, model.unknown)
    return program


def dim_ranges(
    program: ExportedProgram, inputs: Sequence[ModelInput]
) -> dict[str, tuple[int, int | None]]:
    """Return the smallest and largest size of each dimension whose sizes the trace limits.

    A branch on a size that Python took while the model was traced limits it, as does a table of
    positions.
    """
    ranges: dict[str, tuple[int, int | None]] = {}
    for _, _, expr, size in _dynamic_axes(program, inputs):
        symbol = getattr(getattr(size, "node", None), "expr", None)
        if not expr.is_plain or symbol not in program.range_constraints:
            continue
        limits = program.range_constraints[symbol]
        largest = int(limits.upper) if limits.upper.is_Integer else None
        # Torch traces for sizes from 2 on; size 1 is tried on the original model.
        smallest = int(limits.lower) if limits.lower > _SMALLEST_TRACED else 1
        if smallest > 1 or largest is not None:
            ranges[expr.name] = (smallest, largest)
    return ranges


def _dynamic_axes(
    program: ExportedProgram, inputs: Sequence[ModelInput]
) -> Iterator[tuple[ModelInput, int, DimExpr, int | torch.SymInt]]:
    """The axes that were declared dynamic, and the sizes that they have in the program."""
    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    for item, name in zip(inputs, program.graph_signature.user_inputs, strict=True):
        shape = placeholders[name].meta["val"].shape
        for axis, expr in parsed_dims(item).items():
            yield item, axis, expr, shape[axis]


def _copied(program: ExportedProgram) -> ExportedProgram:
    """A program with a graph of its own: what is changed in it is compared with the original."""
    graph_module = copy.deepcopy(program.graph_module)
    for node, copied in zip(program.graph.nodes, graph_module.graph.nodes, strict=True):
        copied.name = node.name  # a copy calls `input`, and other words of Python, `input_1`
    return ExportedProgram(
        root=graph_module,
        graph=graph_module.graph,
        graph_signature=copy.deepcopy(program.graph_signature),
        state_dict=program.state_dict,
        range_constraints=dict(program.range_constraints),
        module_call_graph=[replace(call) for call in program.module_call_graph],
        example_inputs=program.example_inputs,
        constants=dict(program.constants),
        verifiers=[program.verifier],
    )


def _trace(
    module: torch.nn.Module,
    inputs: Sequence[ModelInput],
    names: Sequence[str],
    bounds: Mapping[str, _Bounds],
) -> ExportedProgram:
    """Trace within bounds; where the model sets narrower ones (64 positions), once more."""
    # It prints the tracebacks of errors that are raised as well.
    quiet = muted("torch._subclasses.fake_tensor", below=logging.CRITICAL)
    shapes = dynamic_shapes(names, inputs, bounds)
    try:
        with torch.no_grad(), quiet, no_warnings(), watch_specialisations() as places:
            return torch.export.export(
                module,
                tuple(item.value for item in inputs),
                dynamic_shapes=shapes,
                prefer_deferred_runtime_asserts_over_guards=True,
            )
    except Exception as error:  # torch raises many kinds, some of them private
        narrower = _suggested_bounds(str(error))
        if not narrower or narrower.items() <= bounds.items():
            raise _explain(error, inputs, places) from error
    return _trace(module, inputs, names, {**bounds, **narrower})


def _suggested_bounds(text: str) -> dict[str, _Bounds]:
    """Read `seq = Dim('seq', min=2, max=64)` from torch's advice, if that is all of it."""
    _, _, advice = text.partition("Suggested fixes:")
    lines = [line.strip() for line in advice.split("\n\n")[0].splitlines() if line.strip()]
    bounds: dict[str, _Bounds] = {}
    for line in lines:
        match = re.fullmatch(r"(\w+) = Dim\('\w+'(?:, min=(\d+))?(?:, max=(\d+))?\)", line)
        if match is None:
            return {}
        low, high = (None if text is None else int(text) for text in match.group(2, 3))
        bounds[match[1]] = (low, high)
    return bounds


def dynamic_shapes(
    names: Sequence[str], inputs: Sequence[ModelInput], bounds: Mapping[str, _Bounds]
) -> dict[str, object] | None:
    """Return the dynamic axes of each input, by the parameter that takes it; None where nothing is
    dynamic.

    Args:
        names: The parameters, as `taking_tensors` calls them.
        bounds: Smallest and largest size of some dimensions.
    """
    known = {expr.name for item in inputs for expr in parsed_dims(item).values()}
    ranges = {name: bounds.get(name, (None, None)) for name in sorted(known)}
    dims = {name: Dim(name, min=low, max=high) for name, (low, high) in ranges.items()}
    axes = [{axis: _dim(expr, dims) for axis, expr in parsed_dims(item).items()} for item in inputs]
    return dict(zip(names, axes, strict=True)) if dims else None


def _dim(expr: DimExpr, dims: Mapping[str, Dim]) -> object:
    dim = dims[expr.name]
    scaled = dim if expr.multiplier == 1 else expr.multiplier * dim
    return scaled + expr.offset if expr.offset else scaled


def _check_read(
    program: ExportedProgram, inputs: Sequence[ModelInput], unknown: Collection[str]
) -> None:
    """Check that what went into `**kwargs` is read: a misspelt name would be lost there."""
    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    for item, name in zip(inputs, program.graph_signature.user_inputs, strict=True):
        if item.name in unknown and not placeholders[name].users:
            raise ExportError(
                f"the model does not read the input '{item.name}': its forward has no parameter of"
                " that name, only **kwargs.",
                hint="Call inputs as the parameters of forward that take them.",
            )


def _check_dynamic(program: ExportedProgram, inputs: Sequence[ModelInput]) -> None:
    """Check that declared axes are still symbolic, and that no two names have become one."""
    symbols: dict[str, str] = {}
    for item, axis, expr, size in _dynamic_axes(program, inputs):
        if isinstance(size, int):
            raise ExportError(
                f"dimension '{expr}' (axis {axis} of input '{item.name}') was declared dynamic,"
                f" but the model fixes it to {size}."
            )
        if expr.is_plain:
            symbols.setdefault(expr.name, str(size.node.expr))
    first: dict[str, str] = {}
    for name, symbol in symbols.items():
        if first.setdefault(symbol, name) != name:
            raise _must_be_equal(first[symbol], name)


def _explain(
    error: Exception, inputs: Sequence[ModelInput], places: Mapping[str, str]
) -> ExportError:
    text = str(error)
    where = _location(text)
    structured = _equal_or_multiple(text)
    if structured is not None:
        return structured
    fixed = _fixed_dimensions(text, inputs, places)
    if fixed:
        return ExportError(
            f"the model fixes {' and '.join(fixed)}{where}.",
            hint="Leave the axis out of --dynamic, or make the model independent of its size.",
        )
    if isinstance(error, TypeError) and "argument" in text:
        return ExportError(f"the model does not accept these inputs: {text.splitlines()[0]}")
    unknown = re.search(r"Found <class '(?:\w+\.)*(\w+)'> in output", text)
    if unknown:
        return ExportError(
            f"the model returns a {unknown[1]}, whose tensors torch.export does not find.",
            hint="Return a tensor, tuple, list, dict or dataclass; or let the model's code register"
            f" it: torch.utils._pytree.register_pytree_node({unknown[1]}, ...).",
        )
    return ExportError(
        f"torch.export cannot trace the model: {headline(error)}{where}.",
        hint="The model must run as one graph: no Python branches on tensor values, no .item(), no"
        " sizes that hang on values, as x[mask] has one.",
    )


def _equal_or_multiple(text: str) -> ExportError | None:
    """Read torch's advice that two dimensions are one, or that one is a multiple."""
    _, _, advice = text.partition("Suggested fixes:")
    multiple = re.search(r"^\s*(\w+) = (\d+)\*_\1\s*$", advice, re.MULTILINE)
    if multiple:
        name, factor = multiple.groups()
        return ExportError(
            f"dimension '{name}' must be a multiple of {factor}: the model divides it.",
            hint=f"Declare the axis as {factor}*{name}; its example {2 * int(factor)} or more.",
        )
    equal = re.search(r"^\s*(\w+) = ([A-Za-z]\w*)\s*$", advice, re.MULTILINE)
    if equal:
        return _must_be_equal(*equal.groups())
    return None


def _must_be_equal(first: str, second: str) -> ExportError:
    return ExportError(
        f"dimensions '{first}' and '{second}' were declared separately, but the model needs them"
        " to be equal.",
        hint=f"Give both the name '{first}'.",
    )


def headline(error: BaseException) -> str:
    """Return the kind of an error and the first line that says something: no advice of torch's."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[0] if lines else type(error).__name__
    return f"{type(error).__name__}: {first}"[:400].rstrip(".")


def _fixed_dimensions(
    text: str, inputs: Sequence[ModelInput], places: Mapping[str, str]
) -> list[str]:
    """The dimensions that torch says were specialised, and to what."""
    exprs = {
        expr.name: (item.name, axis)
        for item in inputs
        for axis, expr in parsed_dims(item).items()
        if expr.is_plain
    }
    found: list[str] = []
    for name, (input_name, axis) in exprs.items():
        sizes = re.findall(
            rf"\b{re.escape(name)} = (\d+)\b"
            rf"|marked {re.escape(name)} as dynamic[^.]*?\bconstant \((\d+)\)"
            rf"|\bfor {re.escape(name)} = [^\n]*specialized[^\n]*?(\d+)",
            text,
        )
        sizes = ["".join(groups) for groups in sizes]
        if sizes:
            at = f", at {places[sizes[0]]}" if places.get(sizes[0]) else ""
            found.append(
                f"dimension '{name}' (axis {axis} of input '{input_name}') to {sizes[0]}{at}"
            )
        elif re.search(rf"\b{re.escape(name)}\b", text) and "Constraints violated" in text:
            rule = re.search(rf"[^\n]*\b{re.escape(name)}\b[^\n]*", text)
            reason = "" if rule is None else f" ({rule.group(0).strip(' -*')[:200]})"
            found.append(f"dimension '{name}' (axis {axis} of input '{input_name}'){reason}")
    return found


def _location(text: str) -> str:
    """The last line of the user's code that torch names."""
    frames = re.findall(r'File "([^"]+)", line (\d+), in (\w+)', text)
    frames = [frame for frame in frames if "/torch/" not in frame[0]]
    if not frames:
        return ""
    path, line, function = frames[-1]
    return f", at {path}:{line} in {function}"
