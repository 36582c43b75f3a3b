"""Programs of torch.export.save (`.pt2`): read only if reading executes nothing of the file's own.

torch.export.load evaluates parts of the file as Python: shape expressions (sympy.sympify), guards
(exec), names of operators (attribute look-up), pickled weights, constants and example inputs.
Unless the user trusts the file, each is checked first to be of the harmless form that
torch.export.save writes; of example inputs that are objects of classes, the tensors alone are read.
"""

import ast
import contextlib
import io
import json
import logging
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

import torch
from torch.utils import _pytree as pytree

from moh_deploy.errors import CheckpointError
from moh_deploy.frontend.fx.containers import keys_in_spec, names_in_context
from moh_deploy.frontend.quiet import muted
from moh_deploy.system.bounded_file import open_archive, open_regular
from moh_deploy.system.bounded_json import parse_json
from moh_deploy.system.suggest import shortened

_PLAIN_RECORDS = re.compile(
    r"archive_format|archive_version|byteorder|\.data/\w+|\.format_version|\.storage_alignment|extra/.*"
    r"|models/model\.json|data/sample_inputs/model\.pt"
    r"|data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)"
)
_OPERATOR = re.compile(
    r"torch\.ops\.(higher_order\.[a-z]\w*|[a-z]\w*\.\w+\.[A-Za-z]\w*)"
    r"|torch\.(sym_\w+|_sym_\w+)|math\.[a-z]\w*"
    r"|_operator\.(getitem|add|sub|mul|truediv|floordiv|mod|pow|neg|pos|eq|ne|lt|le|gt|ge|and_|or_|not_|lshift|rshift)"
)
_VALUE_NAME = re.compile(r"[A-Za-z_][\w.]*", re.ASCII)
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?", re.ASCII)
_SYMBOL = re.compile(r"[a-z]+\d+|int_oo|oo|true|false", re.ASCII)
_SHAPE_METHODS = frozenset({"size", "stride", "storage_offset", "shape"})
_SHAPE_FUNCTIONS = frozenset(
    """
    Symbol Integer Float Rational Add Mul Pow Max Min Abs Mod And Or Not floor ceiling
    Eq Ne Ge Gt Le Lt Equality Unequality GreaterThan StrictGreaterThan LessThan StrictLessThan
    FloorDiv CleanDiv CeilDiv ModularIndexing Where PythonMod CeilToInt FloorToInt LShift RShift
    PowByNatural FloatPow FloatTrueDiv IntTrueDiv TruncToInt TruncToFloat RoundToInt RoundDecimal
    ToFloat Identity IsNonOverlappingAndDenseIndicator math.ceil math.floor math.trunc
    max min abs torch.sym_float torch.sym_int torch.sym_max torch.sym_min torch.sym_not
    """.split()  # noqa: SIM905
)
_SHAPE_SYNTAX = (
    *(ast.Expression, ast.BoolOp, ast.BinOp, ast.UnaryOp, ast.Compare, ast.IfExp, ast.keyword),
    *(ast.Subscript, ast.boolop, ast.operator, ast.unaryop, ast.cmpop, ast.expr_context),
)
_EXAMPLE = "data/sample_inputs/model.pt"


def load_program(
    path: Path, *, trust_pickle: bool, needs_example: bool = True
) -> torch.export.ExportedProgram:
    """Load an exported program.

    Args:
        needs_example: Whether the example inputs in the file have to be read.

    Raises:
        CheckpointError: The file is damaged, it brings along code and is not trusted, or it was
            exported in training mode.
    """
    pickled = None if trust_pickle else _require_plain(path)
    try:
        # Torch logs that it unpickled example inputs, which the user has allowed.
        quiet = muted("torch._export.serde.serialize", "torch.export", below=logging.ERROR)
        with open_regular(path) as file, quiet:  # a path would have to end in .pt2
            known = _with_known_classes(file, path, drop_example=pickled is not None)
            program = torch.export.load(known)
    except Exception as error:
        raise CheckpointError(
            f"{path}: is not a program that torch {torch.__version__} can load:"
            f" {type(error).__name__}: {error}",
            hint="Export it again with this version of torch, or give the module's checkpoint.",
        ) from error
    if pickled is not None and needs_example:
        spec = program.call_spec.in_spec
        leaves = _leaves_without_classes(pickled, spec)
        if leaves is None:
            raise CheckpointError(
                f"{path}: its example inputs are pickled objects whose tensors cannot be read"
                " without running their classes.",
                hint="Give other inputs (--inputs FILE.npz, or --input), and they are not read; or,"
                " if you trust the file, pass --trust-pickle.",
            )
        args, kwargs = pytree.tree_unflatten(leaves, spec)
        program._example_inputs = args, kwargs
    require_inference_mode(program, source=str(path))
    return program


def drop_derived_sizes(program: torch.export.ExportedProgram) -> None:
    """Drop sizes such as `2*m` and `past + 1` from the symbols that torch keeps of a program.

    torch.export.load enters each size that has a range among the symbols, and torch.onnx takes a
    product or sum there for an error ("expected sympy.Symbol"). Their ranges follow from those of
    the symbols in them. Only programs that were loaded from a file have such entries.
    """
    for node in program.graph.nodes:
        for size in getattr(node.meta.get("val"), "shape", ()):
            if isinstance(size, torch.SymInt):
                ranges = size.node.shape_env.var_to_range
                for derived in [symbol for symbol in ranges if not symbol.is_Symbol]:
                    del ranges[derived]
                return  # all sizes of a program are of one environment


def require_inference_mode(program: torch.export.ExportedProgram, *, source: str) -> None:
    """Refuse a program that was exported in training mode, which its graph has fixed.

    Raises:
        CheckpointError: A node of the program acts as in training.
    """
    for node in program.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        named = zip(schema.arguments if schema else (), node.args, strict=False)
        if any(formal.name in ("train", "training") and arg is True for formal, arg in named):
            raise CheckpointError(
                f"{source}: was exported in training mode: node '{node.name}' is {node.target} with"
                " train=True.",
                hint="Call model.eval() before torch.export.export and save it again.",
            )


def _require_plain(path: Path) -> bytes | None:
    """Refuse a file that runs code; return example inputs that are more than plain data."""
    what = "a program of torch.export.save"
    with open_archive(path, error=CheckpointError, what=what, hint="Export it again.") as archive:
        found: list[str] = []
        for member in archive.namelist():
            record = member.partition("/")[2]
            if not _PLAIN_RECORDS.fullmatch(record):
                found.append(f"record '{member}'")
            elif record.endswith(".json"):
                content, place = archive.read(member), f"{path}: '{member}'"
                found += _executable_json(parse_json(content, place, error=CheckpointError))
        examples = [archive.read(n) for n in archive.namelist() if n.endswith(f"/{_EXAMPLE}")]
    if found:
        raise CheckpointError(
            f"{path}: brings along parts that run code when loaded: {shortened(found)}.",
            hint="If you trust the file, pass --trust-pickle.",
        )
    return next((item for item in examples if item and not _reads_as_plain_data(item)), None)


def _executable_json(value: object) -> Iterator[str]:
    """Yield what loading or running the program would evaluate and is not shape arithmetic."""
    if isinstance(value, list):
        for item in value:
            yield from _executable_json(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if not _is_harmless(key, item):
                yield f"{key} {str(item)[:80]!r}"
            yield from _executable_json(item)


def _is_harmless(key: str, value: object) -> bool:
    if key == "use_pickle":
        return value is False
    if key == "guards_code":
        return isinstance(value, list) and all(_is_shape_arithmetic(str(v)) for v in value)
    if not isinstance(value, str):
        return True
    if key == "expr_str":
        return _is_shape_arithmetic(value)
    if key == "target":
        return _OPERATOR.fullmatch(value) is not None
    if key in ("name", "as_name"):
        return value == "" or _VALUE_NAME.fullmatch(value) is not None
    if key in ("in_spec", "out_spec"):
        return "__enum__" not in value and "default_factory" not in value
    return True


def _is_shape_arithmetic(code: str) -> bool:
    try:
        nodes = list(ast.walk(ast.parse(code.strip(), mode="eval")))
    except (SyntaxError, ValueError, RecursionError):
        return False
    # Text is data only where a symbol or an input is named, or as the digits of a number; elsewhere
    # sympy would evaluate it.
    data = {id(node.slice) for node in nodes if isinstance(node, ast.Subscript)}
    for node in nodes:
        first = node.args[0] if isinstance(node, ast.Call) and node.args else None
        if isinstance(node, ast.Call) and isinstance(first, ast.Constant):
            form = {"Symbol": _VALUE_NAME, "Float": _NUMBER}.get(ast.unparse(node.func))
            if form is not None and isinstance(first.value, str) and form.fullmatch(first.value):
                data.add(id(first))
    return all(_is_harmless_node(node, data) for node in nodes)


def _is_harmless_node(node: ast.AST, text_allowed: set[int]) -> bool:
    if isinstance(node, ast.Call):
        function = node.func
        is_method = isinstance(function, ast.Attribute) and function.attr in _SHAPE_METHODS
        return is_method or ast.unparse(function) in _SHAPE_FUNCTIONS
    if isinstance(node, ast.Attribute):
        return node.attr in _SHAPE_METHODS or ast.unparse(node) in _SHAPE_FUNCTIONS
    if isinstance(node, ast.Name):
        return node.id in _SHAPE_FUNCTIONS | {"L", "args", "math", "torch"} or bool(
            _SYMBOL.fullmatch(node.id)
        )
    if isinstance(node, ast.Constant):
        return not isinstance(node.value, (str, bytes)) or id(node) in text_allowed
    return isinstance(node, _SHAPE_SYNTAX)


# torch.export.load needs each class that a program takes or returns to be imported and registered,
# though all that matters of it here is how many parts it has and what they are called. The file
# says that: an unknown class is read as a dict, or as a tuple where it names no parts.


def _with_known_classes(file: IO[bytes], path: Path, *, drop_example: bool) -> IO[bytes]:
    """Return a program's file, or a copy in memory in which all classes are known."""
    try:
        archive = zipfile.ZipFile(file)
    except zipfile.BadZipFile:
        return file  # torch says what is wrong with it
    with archive:
        changed: dict[str, bytes] = {}
        for name in archive.namelist():
            if "/models/" in name:
                content, place = archive.read(name), f"{path}: '{name}'"
                document = parse_json(content, place, error=CheckpointError)
                if _replace_in(document):
                    changed[name] = json.dumps(document).encode()
            elif drop_example and name.endswith(f"/{_EXAMPLE}"):
                changed[name] = b""
        if not changed:
            file.seek(0)
            return file
        copy = io.BytesIO()
        with zipfile.ZipFile(copy, "w") as new:
            for name in archive.namelist():
                new.writestr(name, changed[name] if name in changed else archive.read(name))
    copy.seek(0)
    return copy


def _replace_in(value: object) -> bool:
    """Replace unknown classes in all specs; tells whether there was one."""
    found = False
    if isinstance(value, list):
        for item in value:
            found |= _replace_in(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key in ("in_spec", "out_spec") and isinstance(item, str):
                spec = json.loads(item)
                if _replace_in_spec(spec):
                    value[key], found = json.dumps(spec), True
            else:
                found |= _replace_in(item)
    return found


def _replace_in_spec(spec: object) -> bool:
    """Replace unknown classes in a spec: {"type": ..., "context": text, "children_spec": [...]}."""
    found = False
    if isinstance(spec, list):
        for item in spec:
            found |= _replace_in_spec(item)
    elif isinstance(spec, dict):
        children, context = spec.get("children_spec", []), spec.get("context")
        found = _replace_in_spec(children)
        # Most classes keep their context as JSON, and any text may be one.
        with contextlib.suppress(ValueError):
            context = json.loads(context) if isinstance(context, str) else context
        known, name = pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE, spec.get("type")
        is_named = name == "collections.namedtuple"
        if context not in known if is_named else name is not None and name not in known:
            names = names_in_context(context, len(children))
            spec["type"] = "builtins.tuple" if names is None else "builtins.dict"
            spec["context"] = json.dumps(names)
            found = True
    return found


def _leaves_without_classes(pickled: bytes, spec: pytree.TreeSpec) -> list[object] | None:
    """Return the leaves of pickled arguments, in the order of a structure; None where its objects
    are not made of the parts that the structure names.
    """
    try:
        leaves = _leaves(_read_without_classes(pickled), spec)
    except (KeyError, ValueError, AttributeError):
        return None
    plain = (torch.Tensor, bool, int, float, str, type(None))
    return leaves if all(isinstance(leaf, plain) for leaf in leaves) else None


def _leaves(value: object, spec: pytree.TreeSpec) -> list[object]:
    if spec.is_leaf():
        return [value]
    if isinstance(value, (list, tuple)):
        parts = list(value)
    else:
        named = value if isinstance(value, dict) else value.__dict__
        by_name = {str(key): item for key, item in named.items()}
        parts = [by_name[key] for key in keys_in_spec(spec) or ()]
    pairs = zip(parts, spec.children(), strict=True)
    return [leaf for part, child in pairs for leaf in _leaves(part, child)]


def _reads_as_plain_data(data: bytes) -> bool:
    """Return whether torch reads a pickle as tensors and plain Python values, unaided."""
    try:
        torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception:  # any failure means: not plainly readable
        return False
    return True


class _Unread:
    """Stands for an object of any class, and keeps its attributes."""

    def __init__(self, *_: object) -> None:
        """Take what its class would, and do nothing with it."""


def _read_without_classes(data: bytes) -> object:
    """Return what torch.save stored, with objects that have attributes only for those of classes:
    nothing that the file names is imported or called.

    Raises:
        ValueError: It cannot be read so.
    """
    try:
        named = torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(data))
        with torch.serialization.safe_globals([(_Unread, name) for name in named]):
            return cast(object, torch.load(io.BytesIO(data), "cpu", weights_only=True))
    except Exception as error:  # the reader for untrusted files answers with many kinds
        raise ValueError("not readable without its classes") from error
