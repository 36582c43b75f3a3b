"""Complex numbers as pairs of real ones, which are an axis more, the last.

Many rotary embeddings are written so (`view_as_complex(x) * frequencies`), and ONNX has no complex
numbers. What no rule is for stays as it is, and is refused where the program is translated.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from moh_deploy.frontend.fx.builder import GraphBuilder
from moh_deploy.frontend.fx.graph import add_constant, argument, is_tensor, op, rank, shape, tensor
from moh_deploy.frontend.fx.known_values import Constants

aten = torch.ops.aten

_SAME = frozenset(("alias", "detach", "lift_fresh_copy", "resolve_conj", "to"))
_ELEMENTWISE = {"add": aten.add.Tensor, "sub": aten.sub.Tensor, "neg": aten.neg.default}
# Operators that move elements, and which of their arguments are dimensions.
_DIMS: dict[str, tuple[int, ...]] = {
    "flatten": (1, 2),
    "select": (1,),
    "slice": (1,),
    "squeeze": (1,),
    "transpose": (1, 2),
    "unflatten": (1,),
    "unsqueeze": (1,),
}


def pair_complex_numbers(program: ExportedProgram) -> None:
    """Let real numbers take over from complex ones between where they begin and where they end."""
    graph = program.graph_module.graph
    if not any(map(_is_complex, graph.nodes)):
        return
    pairs = _Pairs(program)
    for node in list(graph.nodes):
        real = pairs.ended(node)
        if real is not None:
            node.replace_all_uses_with(real)
        elif _is_complex(node):
            pairs.take(node)
    graph.eliminate_dead_code()


def _is_complex(node: object) -> bool:
    return is_tensor(node) and tensor(cast(Node, node)).dtype.is_complex


class _Pairs:
    """The real form of each complex tensor so far, [..., 2]."""

    def __init__(self, program: ExportedProgram) -> None:
        self._program = program
        self._constant = Constants(program)
        self._real: dict[Node, Node] = {}

    def take(self, node: Node) -> None:
        """Find the real form of a complex tensor, if there is a rule for what makes it."""
        if node.op == "placeholder":
            value = self._constant(node)
            real = None
            if value is not None:
                pairs = torch.view_as_real(value.resolve_conj()).contiguous()
                real = add_constant(self._program, f"{node.name}_pairs", pairs)
        else:
            build = GraphBuilder(self._program.graph_module.graph, node)
            made = self._made(node, build)
            # A number alone widens no tensor; a pair would.
            real = None if made is None else build.cast(made, tensor(node).real.dtype)
        if real is not None:
            self._real[node] = real

    def ended(self, node: Node) -> Node | None:
        """Return what a real tensor that is made of complex ones becomes; None for any other."""
        first = node.args[0] if node.args else None
        if not isinstance(first, Node) or first not in self._real or _is_complex(node):
            return None
        pairs, build = self._real[first], GraphBuilder(self._program.graph_module.graph, node)
        match op(node):
            case "view_as_real":
                return pairs
            case "real":
                return build.call(aten.select.int, pairs, -1, 0)
            case "imag":
                return build.call(aten.select.int, pairs, -1, 1)
            case "abs":
                squares = build.call(aten.mul.Tensor, pairs, pairs)
                return build.call(
                    aten.sqrt.default, build.call(aten.sum.dim_IntList, squares, [-1])
                )
        return None

    def _made(self, node: Node, build: GraphBuilder) -> Node | None:
        name, given = op(node), node.args
        if name == "view_as_complex":
            return cast(Node, given[0])
        if name == "complex":
            real, imaginary = cast(Node, given[0]), cast(Node, given[1])
            return _as_pair(real, imaginary, build) if shape(real) == shape(imaginary) else None
        if name == "polar":
            size, angle = cast(Node, given[0]), cast(Node, given[1])
            cosine, sine = (
                build.call(aten.mul.Tensor, size, build.call(function, angle))
                for function in (aten.cos.default, aten.sin.default)
            )
            return _as_pair(cosine, sine, build)
        if name == "mul":
            return self._product(given, build)
        operands = [group for group in given if isinstance(group, Node) and is_tensor(group)]
        pairs = [self._real.get(operand) for operand in operands]
        if not pairs or None in pairs:
            return None
        first = cast(Node, pairs[0])
        if name in _SAME and len(operands) == 1:
            return first  # `take` casts its parts
        if name in ("clone", "contiguous"):  # a `view` behind it asks for this order in memory
            return build.call(aten.contiguous.default, first)
        if name in _ELEMENTWISE and not node.kwargs and len(operands) == len(given):
            return build.call(_ELEMENTWISE[name], *pairs)
        if name == "conj":
            real, imaginary = _parts(first, build)
            return _as_pair(real, build.call(aten.neg.default, imaginary), build)
        if name in ("view", "reshape", "unsafe_view", "expand"):
            target = aten.expand.default if name == "expand" else aten.reshape.default
            return build.call(target, first, [*cast(Sequence[object], given[1]), 2])
        if name == "permute":
            order = [dim % rank(operands[0]) for dim in cast(Sequence[int], given[1])]
            return build.call(aten.permute.default, first, [*order, len(order)])
        if name in _DIMS:
            return self._moved(node, first, rank(operands[0]), build)
        return None

    def _product(self, given: Sequence[object], build: GraphBuilder) -> Node | None:
        if len(given) != 2 or not all(map(is_tensor, given)):
            return None
        left, right = cast(Sequence[Node], given)
        if not (_is_complex(left) and _is_complex(right)):
            whole, factor = (left, right) if _is_complex(left) else (right, left)
            if whole not in self._real:
                return None
            wide = build.call(aten.unsqueeze.default, factor, -1)
            return build.call(aten.mul.Tensor, self._real[whole], wide)
        if left not in self._real or right not in self._real:
            return None
        (a, b), (c, d) = (_parts(self._real[node], build) for node in (left, right))

        def times(first: Node, second: Node) -> Node:
            return build.call(aten.mul.Tensor, first, second)

        return _as_pair(
            build.call(aten.sub.Tensor, times(a, c), times(b, d)),
            build.call(aten.add.Tensor, times(a, d), times(b, c)),
            build,
        )

    def _moved(self, node: Node, pairs: Node, dims: int, build: GraphBuilder) -> Node | None:
        assert isinstance(node.target, torch._ops.OpOverload)
        formal = node.target._schema.arguments
        named = [formal[place].name for place in _DIMS[op(node)] if place < len(formal)]
        # Without a dimension, `squeeze` is of all dimensions of size 1.
        if not named or not all(isinstance(argument(node, name), (int, str)) for name in named):
            return None
        count = dims + 1 if op(node) == "unsqueeze" else dims
        given = list(node.args)
        for place in _DIMS[op(node)]:
            if place < len(given):
                # Counted from the front: there is one more at the end.
                given[place] = cast(int, given[place]) % count
        if op(node) == "flatten":  # whose end is the last one, unless it says another
            given = [given[0], *(given[1:2] or [0]), *(given[2:3] or [dims - 1])]
        return build.call(node.target, pairs, *given[1:], **node.kwargs)


def _parts(pairs: Node, build: GraphBuilder) -> tuple[Node, Node]:
    return (
        build.call(aten.select.int, pairs, -1, 0),
        build.call(aten.select.int, pairs, -1, 1),
    )


def _as_pair(real: Node, imaginary: Node, build: GraphBuilder) -> Node:
    return build.call(aten.stack.default, [real, imaginary], -1)
