"""Names of a model's outputs, however they are nested."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.export import ExportedProgram
from torch.fx import Node
from torch.utils import _pytree as pytree

from moh_deploy.errors import ConfigError
from moh_deploy.frontend.fx.containers import open_container, without_classes
from moh_deploy.frontend.fx.graph import is_tensor


def tensors_of(outputs: object) -> list[torch.Tensor]:
    """The tensors in a model's return value, in order; numbers and None are left out."""
    return [
        leaf
        for leaf in pytree.tree_leaves(without_classes(outputs))
        if isinstance(leaf, torch.Tensor)
    ]


def output_nodes(program: ExportedProgram) -> list[Node]:
    """The nodes of a program's output tensors, in order."""
    output = next(node for node in program.graph.nodes if node.op == "output")
    return [leaf for leaf in pytree.tree_leaves(output.args) if is_tensor(leaf)]


def output_names(
    program: ExportedProgram, given: Sequence[str], inputs: Sequence[str] = ()
) -> list[str]:
    """Return a name for each output tensor of a program.

    Args:
        given: The user's names, in order; empty to name outputs after their place in the return
            value: `logits`, `cache.0.1`.
        inputs: Names of the model's inputs, which no output may have. A place of that name is
            called `NAME_out`.

    Raises:
        ConfigError: If `given` has another number of names than the model has outputs, a name
            twice, or that of an input.
    """
    natural = [f"{name}_out" if name in inputs else name for name in _natural_names(program)]
    if not given:
        return natural
    if len(given) != len(natural):
        raise ConfigError(
            f"{len(given)} output names are given ({', '.join(given)}), but the model has"
            f" {len(natural)} output tensors ({', '.join(natural)})."
        )
    names = [*inputs, *given]
    for name in given:
        if names.count(name) > 1:
            raise ConfigError(
                f"output name '{name}' is given twice, or is the name of an input.",
                hint=f"The inputs are {', '.join(inputs)}.",
            )
    return list(given)


def _natural_names(program: ExportedProgram) -> list[str]:
    # {"logits": a, "cache": [(k, v)]} -> logits, cache.0.0, cache.0.1
    output = next(node for node in program.graph.nodes if node.op == "output")
    flat = pytree.tree_leaves(output.args, is_leaf=lambda leaf: leaf is None)
    paths = _paths(program, len(flat))
    names = [".".join(path) for path, leaf in zip(paths, flat, strict=True) if is_tensor(leaf)]
    if len(names) == 1 and not names[0]:
        return ["output"]
    return [name if name and not name[0].isdigit() else f"output_{name}" for name in names]


def _paths(program: ExportedProgram, count: int) -> list[tuple[str, ...]]:
    """Keys that lead to each leaf of the return value."""
    signature = program.module_call_graph[0].signature
    if signature is None or signature.out_spec.num_leaves != count:
        return [(str(index),) for index in range(count)]
    nested = pytree.tree_unflatten(list(range(count)), signature.out_spec)
    return _leaf_paths(nested)


def _leaf_paths(value: object) -> list[tuple[str, ...]]:
    parts = open_container(value)
    if parts is None:
        return [()]
    return [
        (key, *rest)
        for key, item in zip(parts.keys, parts.items, strict=True)
        for rest in _leaf_paths(item)
    ]
