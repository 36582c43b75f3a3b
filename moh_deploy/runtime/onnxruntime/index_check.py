"""Refuse inputs for which a model looks up rows that its tables do not have.

The indices are computed as the model computes them, by the part of its graph that does so: token
ids as they are, positions from sizes, masks and the length of a cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from moh_deploy.errors import ConfigError
from moh_deploy.graph.table_lookups import TableLookup, index_model, size_readers, table_lookups
from moh_deploy.system.npz import Array

_MOST_SIZES = 4096


class IndexCheck:
    """Checks the indices of every table that a model looks rows up in.

    Args:
        model: Its weights may be left out.
        from_the_end: As in `table_lookups`.
    """

    def __init__(self, model: onnx.ModelProto, *, from_the_end: bool) -> None:
        lookups = table_lookups(model.graph, from_the_end=from_the_end)
        self._direct = [lookup for lookup in lookups if lookup.indices == lookup.origin]
        computed = [lookup for lookup in lookups if lookup.indices != lookup.origin]
        of_values = [lookup for lookup in computed if lookup.inputs]
        of_sizes = [lookup for lookup in computed if not lookup.inputs]
        self._of_values = _Computed(model, of_values) if of_values else None
        self._of_sizes = _Computed(model, of_sizes) if of_sizes else None
        # Sizes for which nothing was wrong: a request of the same sizes costs nothing.
        self._known: set[tuple[tuple[int, ...], ...]] = set()

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
        content = index_model(model, lookups).SerializeToString()
        self._session = ort.InferenceSession(content, options, ["CPUExecutionProvider"])
        self._lookups = lookups
        readers = size_readers(model.graph)
        self._reads = {info.name: readers.get(info.name) for info in self._session.get_inputs()}
        sized = (node.input[0] for node in self._reads.values() if node is not None)
        self.measured = tuple(dict.fromkeys(sized))

    def check(self, inputs: Mapping[str, Array]) -> None:
        feeds = {
            name: inputs[name] if node is None else _size(node, inputs[node.input[0]].shape)
            for name, node in self._reads.items()
        }
        names = dict.fromkeys(lookup.indices for lookup in self._lookups)
        try:
            found = dict(zip(names, self._session.run(list(names), feeds), strict=True))
        except Exception:  # of sizes that do not fit each other: the model itself says it better
            return
        for lookup in self._lookups:
            _require_rows(lookup, found[lookup.indices], inputs, self.measured)


def _size(node: onnx.NodeProto, shape: Sequence[int]) -> Array:
    """Return what Shape or Size makes of an input."""
    if node.op_type == "Size":
        return np.array(np.prod(shape, dtype=np.int64))
    given = {attribute.name: attribute.i for attribute in node.attribute}
    return np.array(shape[given.get("start", 0) : given.get("end")], np.int64)


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
