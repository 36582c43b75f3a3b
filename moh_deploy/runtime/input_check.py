"""Check inputs before a runtime sees them: its own messages would not name what the user wrote."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import onnx

from moh_deploy.config.dims import DimExpr
from moh_deploy.errors import ConfigError
from moh_deploy.graph.table_lookups import TableLookup, index_model, size_readers, table_lookups
from moh_deploy.package import CachesInPlace, TensorInfo
from moh_deploy.package.cache_buffers import BUFFER, new_length, past_length
from moh_deploy.system.npz import Array
from moh_deploy.system.suggest import did_you_mean

_Axis: TypeAlias = tuple[TensorInfo, int, str, int]  # input, axis, dimension expression, size


def check_inputs(specs: Sequence[TensorInfo], inputs: Mapping[str, Array]) -> dict[str, int]:
    """Check names, dtypes, ranks, fixed sizes, and that dynamic sizes agree among inputs.

    Returns:
        The size of each dynamic dimension.

    Raises:
        ConfigError: Naming the input, what it is and what is expected.
    """
    _check_names([spec.name for spec in specs], inputs)
    for spec in specs:
        _check_tensor(spec, inputs[spec.name])
    return _bind_dims(specs, inputs)


class InputCheck:
    """Checks inputs for one model again and again: as `check_inputs`, whose words only errors need.

    Attributes:
        specs: What the model takes.
    """

    def __init__(self, specs: Sequence[TensorInfo]) -> None:
        self.specs = tuple(specs)
        self._dims = {
            spec.name: [
                dim if isinstance(dim, int) else DimExpr.of_input(dim) for dim in spec.shape
            ]
            for spec in specs
        }
        # Of inputs that were right; none before the first.
        self._dtypes: dict[str, np.dtype] = {}

    def check(self, inputs: Mapping[str, Array]) -> dict[str, int]:
        """Check inputs. Returns and raises as `check_inputs`."""
        sizes = self._sizes(inputs)
        if sizes is None:
            sizes = check_inputs(self.specs, inputs)
            self._dtypes = {name: array.dtype for name, array in inputs.items()}
        return sizes

    def _sizes(self, inputs: Mapping[str, Array]) -> dict[str, int] | None:
        """Return the sizes of dimensions; None where something may be wrong."""
        if inputs.keys() != self._dtypes.keys():
            return None
        sizes: dict[str, int] = {}
        for name, array in inputs.items():
            dims = self._dims[name]
            if array.dtype != self._dtypes[name] or array.ndim != len(dims):
                return None
            for size, dim in zip(array.shape, dims, strict=True):
                if isinstance(dim, int):
                    if size != dim:
                        return None
                    continue
                solved = size if dim.is_plain else dim.solve(size)
                if solved is None or sizes.setdefault(dim.name, solved) != solved:
                    return None
        return sizes


def check_room(
    caches: CachesInPlace, sizes: Mapping[str, int], inputs: Mapping[str, Array]
) -> None:
    """Check that new tokens have room in caches that are written in place.

    Args:
        sizes: Of each dynamic dimension.

    Raises:
        ConfigError: It has no room, or the model takes fewer tokens; with both numbers.
    """
    # The input that says how much is filled has no axes: all others are known by their sizes.
    known = {
        name: int(array)
        for name, array in inputs.items()
        if array.ndim == 0 and array.dtype.kind in "iu"
    }
    past, new = (length(caches, known | dict(sizes)) for length in (past_length, new_length))
    places, first = sizes[BUFFER], caches.buffers[0].past
    if past < caches.least_past:
        raise ConfigError(
            f"'{caches.past_length}' says that {past} tokens are cached, expected"
            f" {caches.least_past} or more."
        )
    if past + new > places:
        raise ConfigError(
            f"the caches have {places} places ('{first}'), {past} of them filled: {new} more"
            " tokens do not fit.",
            hint="Give longer buffers.",
        )
    if caches.most_tokens is not None and past + new > caches.most_tokens:
        raise ConfigError(
            f"{past} cached tokens and {new} more are {past + new}, and the model takes at most"
            f" {caches.most_tokens}."
        )


def empty_axis(specs: Sequence[TensorInfo], inputs: Mapping[str, Array]) -> str | None:
    """Return the first dynamic axis of size 0, in words, if any."""
    for spec, index, text, size in _dynamic_axes(specs, inputs):
        if size == 0:
            array = inputs[spec.name]
            got = f"{array.dtype}{list(array.shape)}"
            return f"input '{spec.name}' is {got}, with size 0 on axis {index} ('{text}')"
    return None


def _check_names(expected: Sequence[str], inputs: Mapping[str, Array]) -> None:
    missing = [name for name in expected if name not in inputs]
    if not missing and len(inputs) == len(expected):
        return
    unexpected = [name for name in inputs if name not in expected]
    given, known = (
        ", ".join(f"'{name}'" for name in names) or "none" for names in (inputs, expected)
    )
    if missing:
        raise ConfigError(f"input '{missing[0]}' is missing: got {given}, expected {known}.")
    if unexpected:
        raise ConfigError(
            f"there is no input '{unexpected[0]}': the model has {known}.",
            hint=did_you_mean(unexpected[0], expected) or None,
        )


def _check_tensor(spec: TensorInfo, array: Array) -> None:
    # Runtimes read bytes as this machine has them.
    is_of_dtype = array.dtype.name == spec.dtype and array.dtype.isnative
    axes = enumerate(zip(array.shape, spec.shape, strict=False))
    other = [axis for axis, (size, fixed) in axes if size != fixed and isinstance(fixed, int)]
    if is_of_dtype and array.ndim == len(spec.shape) and not other:
        return
    # Words only for an error: they take longer than the comparisons.
    got = f"input '{spec.name}' is {array.dtype}{list(array.shape)}"
    wanted = f"{spec.dtype}[{', '.join(map(str, spec.shape))}]"
    if not is_of_dtype:
        raise ConfigError(
            f"{got}, expected dtype {spec.dtype}.",
            hint=f"Convert it: array.astype('{spec.dtype}').",
        )
    if array.ndim != len(spec.shape):
        raise ConfigError(
            f"{got} with {array.ndim} axes, expected {wanted} with {len(spec.shape)}."
        )
    axis = other[0]
    raise ConfigError(
        f"{got}, expected {wanted}: axis {axis} is fixed at {spec.shape[axis]}, got"
        f" {array.shape[axis]}."
    )


def _bind_dims(specs: Sequence[TensorInfo], inputs: Mapping[str, Array]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    first_use: dict[str, _Axis] = {}
    for axis in _dynamic_axes(specs, inputs):
        spec, index, text, size = axis
        expression = DimExpr.of_input(text)
        # Solved for the dimension: an axis `2*seq` of size 7 has no whole `seq`, and axes `seq` and
        # `seq+1` have to mean the same one.
        solved = expression.solve(size)
        if solved is None:
            raise ConfigError(
                f"input '{spec.name}', axis {index}: got size {size}, which is '{text}' for no"
                f" whole number '{expression.name}'."
            )
        # Other shapes may build on it, so that ONNX Runtime would fail at some inner node, or
        # broadcast in silence.
        known = sizes.setdefault(expression.name, solved)
        if known != solved:
            parts = [
                f"{size} ('{text}') on axis {index} of '{spec.name}'"
                for spec, index, text, size in (first_use[expression.name], axis)
            ]
            raise ConfigError(f"dimension '{expression.name}' is inconsistent: {', '.join(parts)}.")
        first_use.setdefault(expression.name, axis)
    return sizes


def _dynamic_axes(specs: Sequence[TensorInfo], inputs: Mapping[str, Array]) -> Iterator[_Axis]:
    for spec in specs:
        for index, (text, size) in enumerate(zip(spec.shape, inputs[spec.name].shape, strict=True)):
            if isinstance(text, str):
                yield spec, index, text, size


# Refuse inputs for which a model looks up rows that its tables do not have.
#
# The indices are computed as the model computes them, by the part of its graph that does so: token
# ids as they are, positions from sizes, masks and the length of a cache.

_MOST_SIZES = 4096


class IndexCheck:
    """Checks the indices of every table that a model looks rows up in.

    Args:
        model: Its weights may be left out.
        from_the_end: As in `table_lookups`.
    """

    def __init__(self, model: onnx.ModelProto, *, from_the_end: bool) -> None:
        found = table_lookups(model.graph, from_the_end=from_the_end)
        # Of tables with as many rows that are read at the same indices, the first stands for all.
        alike = {(lookup.indices, lookup.least, lookup.rows): lookup for lookup in reversed(found)}
        lookups = [*reversed(alike.values())]
        self._direct = [lookup for lookup in lookups if lookup.indices == lookup.origin]
        computed = [lookup for lookup in lookups if lookup.indices != lookup.origin]
        of_values = [lookup for lookup in computed if lookup.inputs]
        of_sizes = [lookup for lookup in computed if not lookup.inputs]
        self._of_values = _Computed(model, of_values) if of_values else None
        self._of_sizes = _Computed(model, of_sizes) if of_sizes else None
        # Sizes for which nothing was wrong: a request of the same sizes costs nothing.
        self._known: set[tuple[tuple[int, ...], ...]] = set()

    @property
    def reads(self) -> frozenset[str]:
        """Names of the inputs that indices are computed from, by their elements or sizes."""
        computed = [made.reads for made in (self._of_values, self._of_sizes) if made is not None]
        return frozenset(lookup.indices for lookup in self._direct).union(*computed)

    def check(self, inputs: Mapping[str, Array]) -> None:
        """Check inputs whose names, dtypes and ranks are right.

        Raises:
            ConfigError: A row is missing; names the table, its size and the input.
        """
        for lookup in self._direct:
            _require_rows(lookup, inputs[lookup.indices], inputs, ())
        if self._of_values is not None:
            self._of_values.check(inputs)
        if self._of_sizes is not None:
            sizes = tuple(inputs[name].shape for name in self._of_sizes.measured)
            if sizes not in self._known:
                self._of_sizes.check(inputs)
                if len(self._known) >= _MOST_SIZES:
                    self._known.clear()
                self._known.add(sizes)


class _Computed:
    """Lookups whose indices a session computes."""

    def __init__(self, model: onnx.ModelProto, lookups: Sequence[TableLookup]) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = 4  # what fails is raised
        options.intra_op_num_threads = 1
        options.enable_mem_pattern = False  # a plan for each size takes longer than these few nodes
        content = index_model(model, lookups).SerializeToString()
        self._session = ort.InferenceSession(content, options, ["CPUExecutionProvider"])
        self._lookups = lookups
        readers = size_readers(model.graph)
        # Where each input of the session comes from: an input of the model, and what Shape or Size
        # makes of it, if one of them reads it.
        self._reads: dict[str, tuple[str, Callable[[Array], Array] | None]] = {}
        for info in self._session.get_inputs():
            node = readers.get(info.name)
            self._reads[info.name] = (
                (info.name, None) if node is None else (node.input[0], _size_reader(node))
            )
        sized = (origin for origin, reader in self._reads.values() if reader is not None)
        self.measured = tuple(dict.fromkeys(sized))
        self._names = [*dict.fromkeys(lookup.indices for lookup in lookups)]

    @property
    def reads(self) -> set[str]:
        """Names of the inputs that indices are computed from."""
        return {*self.measured}.union(*(lookup.inputs for lookup in self._lookups))

    def check(self, inputs: Mapping[str, Array]) -> None:
        feeds = {
            name: inputs[origin] if reader is None else reader(inputs[origin])
            for name, (origin, reader) in self._reads.items()
        }
        try:
            found = dict(zip(self._names, self._session.run(self._names, feeds), strict=True))
        except Exception:  # of sizes that do not fit each other: the model itself says it better
            return
        for lookup in self._lookups:
            _require_rows(lookup, found[lookup.indices], inputs, self.measured)


def _size_reader(node: onnx.NodeProto) -> Callable[[Array], Array]:
    """Return a function from an array to what a node, Shape or Size, makes of it."""
    if node.op_type == "Size":
        return lambda array: np.array(array.size)
    given = {attribute.name: attribute.i for attribute in node.attribute}
    ends = slice(given.get("start", 0), given.get("end"))
    return lambda array: np.array(array.shape[ends], np.int64)


def _require_rows(
    lookup: TableLookup, indices: Array, inputs: Mapping[str, Array], measured: Sequence[str]
) -> None:
    least, most = lookup.least, lookup.rows - 1
    if not indices.size or (int(indices.min()) >= least and int(indices.max()) <= most):
        return
    wrong = int(indices[np.less(indices, least) | np.greater(indices, most)][0])
    table = f"'{lookup.table}', a table of {lookup.rows} rows"
    if lookup.origin is not None:
        array = inputs[lookup.origin]
        for place in np.argwhere(array == wrong)[:1].tolist():
            raise ConfigError(
                f"input '{lookup.origin}' is {wrong} at {place}, expected {least} to {most}: the"
                f" model looks it up in {table}."
            )
    read = ", ".join(f"'{name}' {list(inputs[name].shape)}" for name in (*lookup.inputs, *measured))
    raise ConfigError(
        f"the inputs need row {wrong} of {table}, expected {least} to {most}; they are {read}.",
        hint="A table of positions limits a cache and new tokens together: give fewer of them.",
    )
