"""Write new keys and values into caches where they belong, in place of a longer copy of each.

    present = Concat(past, new)                  present = TensorScatter(past, new, past_length)
    y = MoHAttention(q, k, v, gates, mask)       y = MoHAttention(q, k, v, gates, mask, filled)

`past` and `present` become buffers of one size, filled in their first places: a runtime
writes in place where both are the same memory. All that the model computes from the size of a cache
reads how much of it is filled, and whatever else reads a cache reads the filled part of it alone.
So masks stay what they are, for longer keys: the rest of a buffer is behind what is filled.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from onnxscript import version_converter

from moh_deploy.errors import ConfigError, PackageError
from moh_deploy.graph.growing_caches import (
    CacheLengths,
    GrowingCache,
    cache_lengths,
    growing_caches,
    parsed,
)
from moh_deploy.graph.load_model import add_function_bodies, drop_bodies, infer_types, store_array
from moh_deploy.graph.switch_by_size import without_switches
from moh_deploy.ops import MOH_ATTENTION, is_moh_op
from moh_deploy.ops.attention_shapes import ATTN_MASK, NONPAD_KV_SEQLEN
from moh_deploy.package import CacheBuffer, CachesInPlace, Manifest, VectorSet
from moh_deploy.package.cache_buffers import BUFFER

OPSET = 24
"""The first with TensorScatter."""

_KEY, _VALUE = 1, 2
_PREFIX = "caches"
_INT64 = ir.TensorType(ir.DataType.INT64)


def put_caches_in_place(
    model: ir.Model, manifest: Manifest, vectors: Sequence[VectorSet]
) -> CachesInPlace:
    """Change the model of a package, whose inputs, outputs and runs are still those of `manifest`.

    Args:
        model: Its functions are the bodies of its nodes.
        vectors: Recorded runs, at whose sizes it is seen which of them follow from others.

    Returns:
        What it takes now. `package.cache_buffers` brings manifest and vectors to that.

    Raises:
        ConfigError: It has no cache that grows by Concat, or one that does so in another way.
    """
    if manifest.caches is not None:
        raise ConfigError("the caches of this package are in place already.")
    if BUFFER in manifest.dims:
        raise ConfigError(
            f"the model has a dimension '{BUFFER}', which is what places of caches are called.",
            hint="Give that dimension another name.",
        )
    # `choose_layers` brings the switches back, behind all that is changed here.
    without_switches(model)
    infer_types(model)
    # Bodies are of one opset with the model, and are written anew: a converter would inline them.
    drop_bodies(model)
    if model.opset_imports.get("", 0) < OPSET:
        version_converter.convert_version(model, OPSET)
    caches = growing_caches(model, manifest)
    lengths = cache_lengths(caches, manifest, vectors)
    _Edit(model, caches, lengths).run()
    add_function_bodies(model, opset=model.opset_imports[""])
    past, new = lengths.past_dim, lengths.new_length
    least, longest = manifest.dim_ranges.get(past, (0, None))
    # What limits the length of a cache limits how much of a buffer may be used.
    limits = [dim_sum.most for dim_sum in manifest.dim_sums if set(dim_sum.dims) == {past, new}]
    if longest is not None:
        limits.append(longest + (new if isinstance(new, int) else 0))
    return CachesInPlace(
        buffers=tuple(
            CacheBuffer(cache.past.name or "", cache.present.name or "", cache.axis)
            for cache in caches
        ),
        past_length=lengths.past_length,
        new_length=new,
        least_past=least,
        most_tokens=min(limits, default=None),
    )


@dataclass
class _Edit:
    """One change of a graph; lengths are int64 of shape [1]."""

    model: ir.Model
    caches: Sequence[GrowingCache]
    lengths: CacheLengths
    _masks: dict[ir.Value, ir.Value] = field(default_factory=dict)
    _names: Counter[str] = field(default_factory=Counter)

    def run(self) -> None:
        first, cache = self.model.graph[0], self.caches[0]
        # As the model was: what is added here reads the sizes of buffers.
        readers: dict[ir.Value, list[tuple[ir.Node, int]]] = {
            value: list(value.uses())
            for cache in self.caches
            for value in (cache.past, cache.present)
        }
        past = self._past_length(first)
        batch = self._before(first, "Shape", [cache.past], "batch", start=0, end=1)
        write = self._before(first, "Expand", [past, batch], "write_indices")
        write.shape = filled_shape = ir.Shape([cache.past.shape[0] if cache.past.shape else None])
        # A call adds as many tokens to each: those of the first are computed before any are read.
        new = cache.joined.inputs[1]
        assert new is not None
        tokens = {"start": cache.axis, "end": cache.axis + 1}
        added = self._before(cache.joined, "Shape", [new], "added", **tokens)
        total = self._before(cache.joined, "Add", [past, added], "total")
        filled = self._before(cache.joined, "Expand", [total, batch], "filled")
        filled.shape = filled_shape
        places = self._before(cache.joined, "Shape", [cache.past], "places", **tokens)
        room = self._before(cache.joined, "Sub", [places, total], "room")
        # Attention whose keys and values are caches, with tokens where the op has them.
        axes = {cache.present: cache.axis for cache in self.caches}
        attentions = [
            node
            for node in self.model.graph
            if is_moh_op(node.domain, node.op_type)
            and node.op_type == MOH_ATTENTION.name
            and all(
                value in axes and axes[value] == len(value.shape or ()) - 2
                for value in node.inputs[_KEY : _VALUE + 1]
            )
        ]
        buffers = {cache.present: self._write(cache, write) for cache in self.caches}
        # Attention takes buffers; whatever else reads a cache, what is filled of it.
        for node in attentions:
            self._attend(node, buffers, filled, room)
        for cache in self.caches:
            written, done = buffers[cache.present], {*attentions, cache.joined}
            of_past, of_present = (
                [use for use in readers[value] if use[0] not in done]
                for value in (cache.past, cache.present)
            )
            self._read_filled(of_past, cache.past, cache.axis, past)
            self._read_filled(of_present, written, cache.axis, total)
            self.model.graph.remove(cache.joined, safe=True)

    def _past_length(self, first: ir.Node) -> ir.Value:
        """Compute how many tokens the caches hold, at the start of the graph."""
        text, graph = self.lengths.past_length, self.model.graph
        if self.lengths.tells is not None:
            given = ir.Value(name=text, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(()))
            graph.inputs.append(given)
            return self._before(first, "Unsqueeze", [given, self._number(0)], "past")
        total, _, new = text.partition(" - ")
        size = self._dim(first, total)
        if not new:
            return size
        less = self._number(int(new)) if new.isdecimal() else self._dim(first, new)
        return self._before(first, "Sub", [size, less], "past")

    def _dim(self, first: ir.Node, name: str) -> ir.Value:
        """Compute a dimension from the size of an input that is no cache."""
        pasts = [cache.past for cache in self.caches]
        for value in self.model.graph.inputs:
            for axis, dim in enumerate(() if value in pasts else value.shape or ()):
                expr = None if isinstance(dim, int) else parsed(dim.value)
                if expr is not None and expr.name == name and expr.multiplier == 1:
                    size = self._before(first, "Shape", [value], name, start=axis, end=axis + 1)
                    offset = self._number(expr.offset)
                    more = [size, offset]
                    return self._before(first, "Sub", more, name) if expr.offset else size
        raise PackageError(f"model.onnx has no input with the dimension '{name}'.")

    def _write(self, cache: GrowingCache, write: ir.Value) -> ir.Value:
        """Write new tokens into the buffer, which becomes the output; return it."""
        past, joined, before = cache.past, cache.joined, cache.present
        assert past.shape is not None
        past.shape = ir.Shape(
            [BUFFER if axis == cache.axis else dim for axis, dim in enumerate(past.shape)]
        )
        written = ir.Value(name=before.name, type=before.type, shape=past.shape)
        node = ir.node(
            "TensorScatter",
            [past, joined.inputs[1], write],
            {"axis": cache.axis},
            outputs=[written],
            name=f"{joined.name} (in place)",
            metadata_props=dict(joined.metadata_props),
        )
        graph = self.model.graph
        graph.insert_after(joined, node)
        graph.outputs[graph.outputs.index(before)] = written
        return written

    def _attend(
        self, node: ir.Node, buffers: Mapping[ir.Value, ir.Value], filled: ir.Value, room: ir.Value
    ) -> None:
        """Let an attention read buffers: it is told how much is filled, its mask is as long."""
        for place in (_KEY, _VALUE):
            present = node.inputs[place]
            assert present is not None
            node.replace_input_with(place, buffers[present])
        node.resize_inputs(max(len(node.inputs), NONPAD_KV_SEQLEN + 1))
        node.replace_input_with(NONPAD_KV_SEQLEN, filled)
        mask = node.inputs[ATTN_MASK]
        # A mask of one key for all is one of all keys.
        if mask is None or mask.shape is None or mask.shape[-1] == 1:
            return
        if mask not in self._masks:
            pads = self._before(node, "Concat", [self._number(0), room], "mask_pads", axis=0)
            pads.shape = ir.Shape([2])
            longer = [mask, pads, None, self._number(-1)]
            made = self._before(node, "Pad", longer, f"{mask.name}.of_all_places")
            made.type, made.shape = mask.type, ir.Shape([*mask.shape[:-1], BUFFER])
            self._masks[mask] = made
        node.replace_input_with(ATTN_MASK, self._masks[mask])

    def _read_filled(
        self, uses: Sequence[tuple[ir.Node, int]], buffer: ir.Value, axis: int, length: ir.Value
    ) -> None:
        """Let readers of a cache read the first `length` places of its buffer."""
        filled: ir.Value | None = None
        for node, place in uses:
            if node.op_type == "Shape" and not node.domain:
                self._tell_size(node, buffer, axis, length)
                continue
            if filled is None:
                before = node.inputs[place]
                assert before is not None
                ends = [self._number(0), length, self._number(axis)]
                filled = self._before(node, "Slice", [buffer, *ends], f"{buffer.name}.filled")
                filled.type, filled.shape = before.type, before.shape
            node.replace_input_with(place, filled)

    def _tell_size(self, node: ir.Node, buffer: ir.Value, axis: int, length: ir.Value) -> None:
        """Put `length` in the place of a buffer's size in what a Shape gives."""
        rank = len(buffer.shape or ())
        start, end = (
            node.attributes[name].as_int() if name in node.attributes else otherwise
            for name, otherwise in (("start", 0), ("end", rank))
        )
        start, end = (number + rank if number < 0 else min(number, rank) for number in (start, end))
        size: ir.Value = length
        if not start <= axis < end:
            node.replace_input_with(0, buffer)
            return
        if (start, end) != (axis, axis + 1):
            parts = [
                self._before(node, "Shape", [buffer], "sizes", start=begin, end=stop)
                for begin, stop in ((start, axis), (axis + 1, end))
                if begin < stop
            ]
            parts.insert(axis > start, length)
            size = self._before(node, "Concat", parts, "sizes", axis=0)
            size.shape = ir.Shape([end - start])
        before = node.outputs[0]
        if before.is_graph_output():
            size = self._before(node, "Identity", [size], "sizes")
            size.name, size.shape = before.name, before.shape
        before.replace_all_uses_with(size, replace_graph_outputs=True)
        self.model.graph.remove(node, safe=True)

    def _number(self, number: int) -> ir.Value:
        """Return a constant of shape [1]."""
        name = f"{_PREFIX}.{number}"
        known = self.model.graph.initializers.get(name)
        return known or store_array(self.model.graph, name, np.array([number], np.int64))

    def _before(
        self,
        node: ir.Node,
        op: str,
        inputs: Sequence[ir.Value | None],
        name: str,
        **attributes: int,
    ) -> ir.Value:
        """Compute a value in front of a node; lengths unless another type is set."""
        self._names[name] += 1
        number = self._names[name]
        name = f"{_PREFIX}.{name}" if number == 1 else f"{_PREFIX}.{name}#{number}"
        made = ir.Value(name=name, type=_INT64, shape=ir.Shape([1]))
        self.model.graph.insert_before(
            node, ir.node(op, inputs, attributes, outputs=[made], name=name)
        )
        return made
