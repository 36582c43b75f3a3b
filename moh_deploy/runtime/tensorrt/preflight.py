"""Refuse before a build what plugins or parser do not take: every reason, not the first one only.

What the plugins take is data: `moh_deploy/ops/plugin_support.py`.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from moh_deploy.config.dims import size_at
from moh_deploy.errors import BackendError, ExportError
from moh_deploy.ops import OPS, op_names
from moh_deploy.ops.plugin_support import PLUGINS
from moh_deploy.ops.spec import FLOAT_TYPES, PLUGIN_ATTRIBUTES, Attributes, TensorType
from moh_deploy.runtime.tensorrt.flavour import PLUGIN_NAME
from moh_deploy.runtime.tensorrt.messages import ParserError
from moh_deploy.runtime.tensorrt.profiles import LARGEST, Profile
from moh_deploy.system.nvidia_driver import DRIVER_HINT, takes_cuda
from moh_deploy.system.suggest import shortened

# Collect what will not be built, and why, so that all of it is said at once.


@dataclass(frozen=True)
class Rejection:
    """One reason why a package cannot be built, and the next step."""

    layer: str  # name of the node
    value: str  # what it has: `head_dim is 300`
    limit: str  # what is taken: `at most 256`
    what_to_do: str

    def __str__(self) -> str:
        return f"{self.layer}: {self.value}; expected {self.limit}. {self.what_to_do}"


def refusal(rejections: Sequence[Rejection], *, title: str) -> BackendError:
    """Return the error that says all of them.

    Args:
        rejections: At least one.
        title: What would have built it.
    """
    # All reasons in one error: each attempt costs minutes.
    lines = "".join(f"\n  - {rejection}" for rejection in rejections)
    return BackendError(
        f"{title} cannot build this package, for {rejection_reasons(rejections)}:{lines}"
    )


def rejection_reasons(rejections: Sequence[Rejection]) -> str:
    """Return `1 reason` or `3 reasons`."""
    return f"{len(rejections)} reason{'s' if len(rejections) > 1 else ''}"


_FOREIGN_TYPES = ("float64", "complex64", "complex128", "str", "object")
_EXPORT_AGAIN = "This is no model that moh-deploy writes: export it again."


def refused_nodes(nodes: Sequence[ir.Node], profiles: Sequence[Profile]) -> tuple[Rejection, ...]:
    """Return a rejection for each thing that the plugins would refuse.

    Args:
        nodes: All that are to run as plugins; their inputs have dtypes and shapes.
        profiles: Sizes that the engine is for.
    """
    return tuple(
        Rejection(node.name or node.op_type, *reason)
        for node in nodes
        for reason in (
            *_inputs_refused(node),
            *_sizes_refused(node),
            *_profiles_refused(node, profiles),
            *_rule_refused(node),
        )
    )


def refused_targets(
    targets: Sequence[str], *, runs_on: Callable[[int], bool], has_code: str
) -> tuple[Rejection, ...]:
    """Return the compute capabilities that the plugin library has no code for.

    Args:
        targets: `8.6` and the like.
        runs_on: Tells whether it has code for 86 and the like.
        has_code: What it has code for, in words.
    """
    return tuple(
        Rejection(
            PLUGIN_NAME,
            f"compute capability {target}",
            f"what it has code for, {has_code}",
            "Leave it out, or compile the library for it: make plugin.",
        )
        for target in targets
        if not runs_on(int(target.replace(".", "")))
    )


def refused_driver(driver_cuda: str | None, *, needed: int) -> tuple[Rejection, ...]:
    """Return whether the driver is too old for the plugin library.

    CUDA calls that by the same error as no driver at all, and what asks it then goes on as without
    a GPU.

    Args:
        driver_cuda: Version of CUDA that the driver takes, `12.4`; None: it does not matter.
        needed: Major version that the library was compiled with: minor ones get along.
    """
    if driver_cuda is None or takes_cuda(driver_cuda, needed):
        return ()
    return (
        Rejection(
            PLUGIN_NAME,
            f"the NVIDIA driver takes CUDA {driver_cuda}",
            f"{needed}.0 or later, with which the library was compiled",
            f"{DRIVER_HINT[:1].upper()}{DRIVER_HINT[1:]}.",
        ),
    )


def refused_types(types: Mapping[str, str]) -> tuple[Rejection, ...]:
    """Return the values of dtypes that TensorRT has not; its parser would make them float32.

    Args:
        types: Name of each value to its dtype.
    """
    names: dict[str, list[str]] = {}
    for name, dtype in types.items():
        if dtype in _FOREIGN_TYPES:
            names.setdefault(dtype, []).append(name)
    return tuple(
        Rejection(
            shortened(values),
            f"of dtype {dtype}",
            "float32, float16, bfloat16, an integer or bool",
            "Export the model with --dtype float32, or cast it in the model's code.",
        )
        for dtype, values in names.items()
    )


def refused_by_parser(errors: Sequence[ParserError], title: str) -> tuple[Rejection, ...]:
    """Return a rejection for each node that the parser refused."""
    return tuple(
        Rejection(
            error.node or "model.onnx",
            error.operator or "a part of it",
            # Of an operator that it does not know at all it says no more than `false`.
            f"what the parser of {title} takes"
            f"{'' if error.text == 'false' else f' ({error.text})'}",
            "Write this part of the model with other operators.",
        )
        for error in errors
    )


Reason = tuple[str, str, str]
"""What the node has, what is taken, what to do."""


def _inputs_refused(node: ir.Node) -> Iterator[Reason]:
    taken = PLUGINS[node.op_type].inputs
    given = [*node.inputs, *[None] * (len(taken) - len(node.inputs))]
    first = _dtype(next((value for value in node.inputs if value is not None), None))
    for value, spec in zip(given, taken, strict=True):
        if value is None:
            if not spec.optional:
                yield f"{spec.name} is absent", "a value", _EXPORT_AGAIN
            continue
        if (dtype := _dtype(value)) not in spec.dtypes:
            yield f"{spec.name} is {dtype}", _either(spec.dtypes), _EXPORT_AGAIN
        # Floats of one node are of one dtype, that of its first input; others have their own.
        elif spec.dtypes == FLOAT_TYPES and dtype != first:
            yield f"{spec.name} is {dtype}", f"{first}, as the inputs before it are", _EXPORT_AGAIN
        if value.shape is not None and len(value.shape) not in spec.ranks:
            ranks = _either(list(map(str, spec.ranks)))
            yield f"{spec.name} is of rank {len(value.shape)}", ranks, _EXPORT_AGAIN


def _sizes_refused(node: ir.Node) -> Iterator[Reason]:
    """Compare the sizes that the table limits."""
    # A router has no choice of its own.
    what_to_do = "Run this layer by its function: moh-deploy tune DIR --choose LAYER=dense."
    if node.op_type == op_names.ROUTER:
        what_to_do = "Build without the plugin library: functions take it."
    for name, most in PLUGINS[node.op_type].limits.items():
        size = _SIZES[name](node)
        if size is not None and size > most:
            yield f"{name} is {size}", f"up to {most}", what_to_do


def _profiles_refused(node: ir.Node, profiles: Sequence[Profile]) -> Iterator[Reason]:
    """Kernels count the rows of a tensor in 32 bits."""
    for profile in profiles:
        most = {name: span.max for name, span in profile.items()}
        for value, spec in zip(node.inputs, PLUGINS[node.op_type].inputs, strict=False):
            # All axes but the last; what is not known counts as 1.
            known = [size_at(size, most) for size in _dims(value)[:-1]]
            rows = math.prod(1 if number is None else number for number in known)
            if rows > LARGEST:
                yield (
                    f"{spec.name} has {rows} rows at the largest sizes of a profile",
                    f"up to {LARGEST}",
                    "Give a profile with smaller sizes: --profile.",
                )
                return


def _rule_refused(node: ir.Node) -> Iterator[Reason]:
    """Ask the op's own rule: how heads, top-k, masks and sizes have to fit."""
    spec = OPS[node.op_type]
    given = {name: attribute.value for name, attribute in node.attributes.items()}
    known = {attribute.name for attribute in spec.attributes}
    extra = {*PLUGIN_ATTRIBUTES, *(field.name for field in PLUGINS[node.op_type].fields)}
    # What only plugins have is no attribute of the op. Unknown ones stay, so that the rule names
    # them.
    attributes: Attributes = {k: v for k, v in given.items() if k in known or k not in extra}
    types: list[TensorType | None] = [
        TensorType(_dtype(value), tuple(_dims(value)))
        if value is not None and value.shape is not None
        else None
        for value in node.inputs
    ]
    # Inputs that are left out at the end count as absent.
    types += [None] * (len(spec.inputs) - len(types))
    try:
        spec.shape_rule(types, spec.complete(attributes))
    except ExportError as error:
        expected = "what `moh-deploy help ops` says"
        yield error.message.rstrip("."), expected, error.hint or _EXPORT_AGAIN


# Inputs by slot: 0 is Q, 2 is V of attention; 0 the routed and 1 the shared logits of a router.
_SIZES: Mapping[str, Callable[[ir.Node], int | None]] = {
    "head_dim": lambda node: _heads(
        node, 0, "q_num_heads" if node.op_type == op_names.ATTENTION else "num_heads"
    ),
    "value_dim": lambda node: _heads(node, 2, "kv_num_heads"),
    "routed_heads": lambda node: _size(node, 0, -1),
    "shared_heads": lambda node: _size(node, 1, -1),
    "window_places": lambda node: _int(node, "kernel_height") * _int(node, "kernel_width"),
}


def _heads(node: ir.Node, slot: int, attribute: str) -> int | None:
    """Size of a head of Q, K or V: of the last axis, which has all heads where the rank is 3."""
    last = _size(node, slot, -1)
    in_one = last is not None and len(_dims(node.inputs[slot])) == 3
    return last // (_int(node, attribute) or 1) if last is not None and in_one else last


def _int(node: ir.Node, name: str) -> int:
    attribute = node.attributes.get(name)
    return 0 if attribute is None else attribute.as_int()


def _size(node: ir.Node, slot: int, axis: int) -> int | None:
    dims = _dims(node.inputs[slot]) if slot < len(node.inputs) else []
    return size if dims and isinstance(size := dims[axis], int) else None


def _dims(value: ir.Value | None) -> list[int | str | None]:
    """Return the sizes of a value, by their names where they have one; none without a shape."""
    dims = () if value is None or value.shape is None else value.shape
    return [size if isinstance(size, int) else size.value for size in dims]


def _dtype(value: ir.Value | None) -> str:
    return "unknown" if value is None or value.dtype is None else str(value.dtype.numpy())


def _either(names: Sequence[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last
