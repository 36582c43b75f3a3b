"""List the inputs that TensorRT plugins take, as data for checks and docs.

`libmoh_plugin.so` says the same of itself (`moh_plugin_table`), and a test compares the two.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from moh_deploy.ops import OPS, op_names


@dataclass(frozen=True)
class PluginInput:
    """One input of a plugin. All that share `dtypes` have one dtype, except masks and lengths."""

    name: str
    optional: bool
    ranks: tuple[int, ...]
    dtypes: tuple[str, ...]


@dataclass(frozen=True)
class PluginField:
    """A field that a node of the plugin may have besides the attributes of its op."""

    name: str
    type: Literal["int", "float"]
    doc: str


@dataclass(frozen=True)
class PluginSupport:
    """The dtypes, ranks and fields that one TensorRT plugin supports."""

    op: str
    inputs: tuple[PluginInput, ...]
    fields: tuple[PluginField, ...]  # besides the op's attributes
    limits: Mapping[str, int]  # largest sizes, by name


PRESENT_INPUTS = PluginField(
    "present_inputs",
    "int",
    "Which inputs the node has, a bit each, from 1 for the first; 0, the default: the first ones. "
    "For nodes that leave out one in between, which TensorRT's parser refuses.",
)
OPEN_SHARE = PluginField(
    "open_share",
    "float",
    "Share of open gates that the sparse and the dense tactic are measured with; default 0.75.",
)
PORTABLE = PluginField(
    "portable",
    "int",
    "1: the engine may run on other GPUs than the one it is built on, so only kernels that all of "
    "them have are measured; default 0.",
)

_LIMITS = {
    op_names.ROUTER: {"routed_heads": 4096, "shared_heads": 4096},
    op_names.ATTENTION: {"head_dim": 256, "value_dim": 256},
    op_names.AGGREGATED_ATTENTION: {"head_dim": 256, "window_places": 128},
}
_FIELDS = {op_names.ATTENTION: (OPEN_SHARE, PORTABLE)}
# Of each input.
_RANKS: dict[str, tuple[tuple[int, ...], ...]] = {
    op_names.ROUTER: ((3,),) * 3,
    op_names.ATTENTION: ((3, 4), (3, 4), (3, 4), (3,), (1, 2, 3, 4), (1,), (3,)),
    op_names.AGGREGATED_ATTENTION: (*((3,),) * 6, (2,), (2,), (2,), (3,), (3,), (2,)),
}


PLUGINS: Mapping[str, PluginSupport] = {
    op: PluginSupport(
        op,
        tuple(
            PluginInput(given.name, given.optional, ranks, given.types)
            for given, ranks in zip(OPS[op].inputs, ranks_of_inputs, strict=True)
        ),
        (*_FIELDS.get(op, ()), PRESENT_INPUTS),
        _LIMITS[op],
    )
    for op, ranks_of_inputs in _RANKS.items()
}
"""By name of the op; other ops have no plugin, and run their function body."""
