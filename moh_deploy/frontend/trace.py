"""Trace a module with named dynamic dimensions, or say which one it fixes and where."""

import contextlib
import copy
import logging
import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice, takewhile
from pathlib import Path
from types import CodeType
from typing import Any

import sympy
import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import (
    GuardOnDataDependentSymNode,
    ShapeEnv,
    canonicalize_bool_expr,
)
from torch.fx.traceback import preserve_node_meta

from moh_deploy.config.dims import DimExpr
from moh_deploy.errors import ExportError
from moh_deploy.frontend.inputs.program_inputs import drop_bound_inputs
from moh_deploy.frontend.inputs.sizes import Bounds, dynamic_shapes
from moh_deploy.frontend.limits import assertions, dynamic_axes
from moh_deploy.frontend.load.model import LoadedModel, ModelInput, positional, taking_tensors
from moh_deploy.frontend.load.onnx_graph.module import OnnxModule, name_scopes
from moh_deploy.frontend.quiet import muted, no_warnings

# Find the line of the user's code, under which torch's own lines lie and above which ours do.

_TORCH = (str(Path(torch.__file__).parent), "<")
_OURS = str(Path(__file__).parent)

_Frame = tuple[str, int, str]  # file, line, function


def _users(frames: Iterable[_Frame]) -> list[_Frame]:
    """Return the user's among calls, the innermost first: all before those of this package."""
    until_ours = takewhile(lambda frame: not frame[0].startswith(_OURS), frames)
    return [frame for frame in until_ours if not frame[0].startswith(_TORCH)]


def _place(users: Sequence[_Frame]) -> str:
    """Return `, at model.py:12 in forward`, or nothing where no line is the user's."""
    own = (frame for frame in users if "site-packages" not in frame[0])
    # Of a model in an installed package, the line in the package tells more than its caller's.
    found = dict.fromkeys([*users[:1], *islice(own, 1)])
    return "".join(
        f", {word} {file}:{line} in {function}"
        for word, (file, line, function) in zip(("at", "called at"), found, strict=False)
    )


# Find where in the user's code a dynamic dimension became a number while it was traced.


@contextlib.contextmanager
def watch_sizes() -> Iterator[dict[str, list[_Frame]]]:
    """Yield a mapping of what sizes became, `5` or `10 - s94`, and of what was assumed of them,
    `Eq(Mod(s94, 8), 0)`, to the user's calls that did it, the innermost first.

    Torch does not tell. Its own bookkeeping is listened to where it has the form known here;
    elsewhere the mapping stays empty.
    """
    found: dict[str, list[_Frame]] = {}
    own: set[CodeType] = set()

    def listen(called: Callable[..., Any], text: Callable[..., str]) -> Callable[..., Any]:
        def listening(self: ShapeEnv, *given: Any, **named: Any) -> Any:
            stack = [frame for frame in traceback.walk_stack(None) if frame[0].f_code not in own]
            users = _users((f.f_code.co_filename, line, f.f_code.co_name) for f, line in stack)
            if users:  # axes that are equal by their name have no line
                found.setdefault(text(*given), users)
            return called(self, *given, **named)

        own.add(listening.__code__)  # one calls the other
        return listening

    texts: dict[str, Callable[..., str]] = {
        "_set_replacement": lambda symbol, target, *_: str(target),
        "guard_or_defer_runtime_assert": lambda expr, *_: str(canonicalize_bool_expr(expr)),
    }
    originals = {name: vars(ShapeEnv)[name] for name in texts if name in vars(ShapeEnv)}
    for name, called in originals.items():
        setattr(ShapeEnv, name, listen(called, texts[name]))
    try:
        yield found
    finally:
        for name, called in originals.items():
            setattr(ShapeEnv, name, called)


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
    if model.original is not None:
        name_scopes(program)
    # A misspelt name would be lost in `**kwargs`.
    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    for item, name in zip(inputs, program.graph_signature.user_inputs, strict=True):
        if item.name in model.unknown and not placeholders[name].users:
            raise ExportError(
                f"the model does not read the input '{item.name}': its forward has no parameter of"
                " that name, only **kwargs.",
                hint="Call inputs as the parameters of forward that take them.",
            )
    return program


def _copied(program: ExportedProgram) -> ExportedProgram:
    """A program with a graph of its own: what is changed in it is compared with the original."""
    graph_module = copy.deepcopy(program.graph_module)
    for node, copied in zip(program.graph.nodes, graph_module.graph.nodes, strict=True):
        copied.name = node.name  # a copy calls `input`, and other words of Python, `input_1`
    return ExportedProgram(
        graph_module,
        graph_module.graph,
        copy.deepcopy(program.graph_signature),
        program.state_dict,
        dict(program.range_constraints),
        [replace(call) for call in program.module_call_graph],
        example_inputs=program.example_inputs,
        constants=dict(program.constants),
        verifiers=[program.verifier],
    )


def _trace(
    module: torch.nn.Module,
    inputs: Sequence[ModelInput],
    names: Sequence[str],
    bounds: Mapping[str, Bounds],
) -> ExportedProgram:
    """Trace within bounds; where the model sets narrower ones (64 positions), once more."""
    # They print of errors that are raised as well.
    quiet = muted(
        *("torch._subclasses.fake_tensor", "torch.fx.experimental.symbolic_shapes"),
        below=logging.CRITICAL,
    )
    shapes = dynamic_shapes(names, inputs, bounds)
    try:
        # Where an ONNX node was exported from is metadata of what is traced of it.
        scopes = preserve_node_meta(isinstance(module, OnnxModule))
        with (
            torch.no_grad(),
            quiet,
            scopes,
            no_warnings(),
            _no_graphs(),
            _gathered(),
            _related_sizes(module, inputs),
            watch_sizes() as places,
        ):
            program = torch.export.export(
                module,
                tuple(item.value for item in inputs),
                dynamic_shapes=shapes,
                prefer_deferred_runtime_asserts_over_guards=True,
            )
    except ExportError:  # a node of an ONNX file, which names itself
        raise
    except Exception as error:  # torch raises many kinds, some of them private
        narrower = _suggested_bounds(str(error))
        if not narrower or narrower.items() <= bounds.items():
            raise _explain(error) from error
    else:
        # Assertions get the line of the user's code that assumed them, as other nodes have theirs.
        for assertion, node in assertions(program).items():
            for file, line, _ in places.get(str(assertion), [])[:1]:
                node.meta["stack_trace"] = f'File "{file}", line {line}'
        at = {size: _place(users) for size, users in places.items()}
        _check_dynamic(program, module, inputs, at)
        return program
    return _trace(module, inputs, names, {**bounds, **narrower})


@contextlib.contextmanager
def _gathered() -> Iterator[None]:
    """Let `take_along_dim` be a gather where sizes agree: torch takes them for plain numbers."""

    def take_along_dim(x: Tensor, indices: Tensor, dim: int | None = None) -> Tensor:
        if dim is not None and x.dim() == indices.dim():
            sizes = zip(x.movedim(dim, 0).shape[1:], indices.movedim(dim, 0).shape[1:], strict=True)
            if all(size == other for size, other in sizes):
                return torch.gather(x, dim, indices)
        return original(x, indices, dim)

    original, name = torch.take_along_dim, "take_along_dim"
    places = [(owner, getattr(owner, name)) for owner in (torch, Tensor)]
    try:
        for owner, _ in places:
            setattr(owner, name, take_along_dim)
        yield
    finally:
        for owner, before in places:
            setattr(owner, name, before)


@contextlib.contextmanager
def _no_graphs() -> Iterator[None]:
    """Keep torch.export from printing what it traced before an error; the error has it, too."""
    from torch.export import _trace as module  # as late as torch itself imports it

    vars(module)["print"] = lambda *_, **__: None
    try:
        yield
    finally:
        del vars(module)["print"]


@contextlib.contextmanager
def _related_sizes(module: torch.nn.Module, inputs: Sequence[ModelInput]) -> Iterator[None]:
    """Tell torch while it traces which sizes are equal, or follow from one another.

    `Dim.AUTO`, which takes what the model allows, gives each axis a size of its own.
    """
    places: dict[str, list[tuple[int, int, DimExpr]]] = {}
    for index, item in enumerate(inputs):
        for axis, expr in item.parsed_dims.items():
            places.setdefault(expr.name, []).append((index, axis, expr))

    cls = type(module)  # that of `taking_tensors`, which is for this model alone
    called = cls.__call__

    def checked(self: torch.nn.Module, *tensors: torch.Tensor) -> object:
        for axes in places.values():
            plain = [(index, axis) for index, axis, expr in axes if expr.is_plain]
            for index, axis, expr in axes if plain else ():
                size = tensors[plain[0][0]].shape[plain[0][1]]
                expected = expr.multiplier * size + expr.offset
                torch._check(tensors[index].shape[axis] == expected)
        return called(self, *tensors)

    cls.__call__ = checked  # type: ignore[method-assign]
    try:
        yield
    finally:
        cls.__call__ = called  # type: ignore[method-assign]


def _suggested_bounds(text: str) -> dict[str, Bounds]:
    """Read `seq = Dim('seq', min=2, max=64)` from torch's advice, if that is all of it."""
    _, _, advice = text.partition("Suggested fixes:")
    lines = [line.strip() for line in advice.split("\n\n")[0].splitlines() if line.strip()]
    bounds: dict[str, Bounds] = {}
    for line in lines:
        match = re.fullmatch(r"(\w+) = Dim\('\w+'(?:, min=(\d+))?(?:, max=(\d+))?\)", line)
        if match is None:
            return {}
        low, high = (None if text is None else int(text) for text in match.group(2, 3))
        bounds[match[1]] = (low, high)
    return bounds


def _check_dynamic(
    program: ExportedProgram,
    module: torch.nn.Module,
    inputs: Sequence[ModelInput],
    places: Mapping[str, str],
) -> None:
    """Check that declared axes are still symbolic, and that each name has a size of its own."""
    fixed: list[str] = []
    related: dict[str, sympy.Expr] = {}
    symbols: dict[str, sympy.Expr] = {}
    for item, axis, expr, size in dynamic_axes(program, inputs):
        if size.is_Integer:
            at = places.get(str(size), "")
            fixed.append(f"dimension '{expr}' (axis {axis} of input '{item.name}') to {size}{at}")
        elif expr.is_plain:
            own = symbols if size.is_Symbol else related
            own.setdefault(expr.name, size)
    if fixed:
        steps = [
            f"{type(part).__name__} '{name}'"
            for name, part in module.named_modules()
            if isinstance(part, torch.nn.RNNBase)
        ]
        raise ExportError(
            f"the model fixes {' and '.join(fixed)}.",
            hint=f"PyTorch traces {', '.join(steps)} step by step, for one number of steps: leave"
            " that axis out of --dynamic, and fill shorter inputs up. The batch may stay dynamic."
            if steps
            else "Leave the axis out of --dynamic, or make the model independent of its size:"
            " len(x) and int(...) make a plain number of a size, x.shape[0] does not.",
        )
    first: dict[sympy.Expr, str] = {}
    for name, symbol in symbols.items():
        if first.setdefault(symbol, name) != name:
            raise ExportError(
                f"dimensions '{first[symbol]}' and '{name}' were declared separately, but the model"
                f" needs them to be equal{places.get(str(symbol), '')}.",
                hint=f"Give both the name '{name}'.",
            )
    for name, form in related.items():
        # A size follows from others, or from a whole number: 10 - future, 8*n.
        text = str(form.xreplace({s: sympy.Symbol(first.get(s, name)) for s in form.free_symbols}))
        at = places.get(str(form), "")
        others = [first[symbol] for symbol in form.free_symbols if symbol in first]
        if others:
            raise ExportError(
                f"dimension '{name}' must be {text}{at}: while it traces the model, PyTorch"
                " fixes a size that follows from both.",
                hint=f"Leave the axes of '{name}' and '{', '.join(others)}' out of --dynamic, or"
                " make the model independent of that size.",
            )
        raise _is_of_form(name, text.replace(" ", ""), at)


def _is_of_form(name: str, form: str, at: str = "") -> ExportError:
    return ExportError(
        f"dimension '{name}' must be {form} for some whole number{at}.",
        hint=f"Write '{form}' where its axes are declared with '{name}'.",
    )


def _explain(error: Exception) -> ExportError:
    text = str(error)
    frames = reversed(traceback.extract_tb(error.__traceback__))
    place = _place(_users((frame.filename, frame.lineno or 0, frame.name) for frame in frames))
    if isinstance(error, TypeError) and "argument" in text and not place:
        return ExportError(f"the model does not accept these inputs: {text.splitlines()[0]}")
    unknown = re.search(r"Found <class '(?:\w+\.)*(\w+)'> in output", text)
    if unknown:
        return ExportError(
            f"the model returns a {unknown[1]}, whose tensors torch.export does not find.",
            hint="Return a tensor, tuple, list, dict or dataclass; or let the model's code register"
            f" it: torch.utils._pytree.register_pytree_node({unknown[1]}, ...).",
        )
    advice = text.partition("Suggested fixes:")[2]
    form = re.search(r"^\s*(\w+) = ([^=\n(]*_\1\b[^=\n]*)$", advice, re.MULTILINE)
    if form:  # of a dimension that no axis has alone: t = 2*_t
        return _is_of_form(form[1], form[2].replace("_", "").replace(" ", ""))
    if isinstance(error, GuardOnDataDependentSymNode):
        return ExportError(
            "Python reads a value of a tensor, or a size that depends on values, while the model"
            f" is traced{place}.",
            hint="Choose with torch.where instead of `if`, keep a number as a tensor instead of"
            " int(x) or x.item(), and multiply by a mask instead of x[mask]. --verbose prints the"
            " graph until there.",
        )
    return ExportError(
        f"torch.export cannot trace the model: {headline(error)}{place}.",
        hint="The model must run as one graph: no Python branches on tensor values, no .item(), no"
        " sizes that depend on values, as that of x[mask] does.",
    )


def headline(error: BaseException) -> str:
    """Return the kind of an error and the first line that says something: no advice of torch's."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[0] if lines else type(error).__name__
    return f"{type(error).__name__}: {first}"[:400].rstrip(".")
