"""Compute on tokens what a model computes on images that it makes of them.

`tokens [B, N, C] -> image [B, C, H, W] -> convolutions -> tokens` moves every activation twice. A
depthwise convolution becomes a MoHTokenConv, with the bias of the product before it and the gelu
and the gates that follow; a convolution of one pixel a matrix product, the mean of blocks a mean.
"""

import torch
from torch.export import ExportedProgram
from torch.fx import Graph, Node

from moh_deploy.frontend import torch_ops  # noqa: F401  registers moh::token_conv
from moh_deploy.frontend.fx.builder import GraphBuilder, LayoutBuilder, Operand
from moh_deploy.frontend.fx.graph import argument, example_shape, module_path, op, shape
from moh_deploy.frontend.fx.views import is_view
from moh_deploy.frontend.recognize import image_chains
from moh_deploy.frontend.recognize.walk import walk
from moh_deploy.frontend.rewrite.operands import Swap
from moh_deploy.ops import op_names

aten = torch.ops.aten

_PARTS = frozenset(["chunk", "split", "split_with_sizes", "getitem", "slice", "narrow"])


def insert_token_layout(program: ExportedProgram) -> list[Swap]:
    """Insert beside each chain of operators on an image the same on tokens."""
    graph = program.graph_module.graph
    swaps = [_insert(graph, chain) for chain in image_chains.find_image_chains(graph)]
    program.graph_module.recompile()
    return swaps


def _insert(graph: Graph, chain: image_chains.ImageChain) -> Swap:
    builder = GraphBuilder(graph, chain.end)
    layouts = LayoutBuilder(builder)
    entry, input_bias = chain.entry, None
    if isinstance(chain.steps[0], image_chains.Depthwise):
        entry, input_bias = _split_off_bias(builder, chain)
    tokens = layouts.arrange(entry, (*chain.image.tokens[:2], chain.features))
    inserted: list[str] = []
    for step in chain.steps:
        tokens, name = _on_tokens(builder, step, tokens, input_bias)
        inserted.append(name)
        input_bias = None
    result = layouts.arrange(Operand(tokens, chain.steps[-1].image.tokens), chain.layout)
    for node in chain.inner:
        # A size would keep the whole image alive for a number.
        _read_sizes_elsewhere(graph, node)
    path = ".".join(module_path(chain.end)) or "model"
    return Swap(
        chain.end,
        result,
        f"the token layout of {path}",
        path=path,
        replaced=tuple(op(node) for node in (*chain.inner, chain.end)),
        inserted=tuple(inserted),
    )


def _split_off_bias(
    builder: GraphBuilder, chain: image_chains.ImageChain
) -> tuple[Operand, Node | None]:
    """The tokens before the bias of the product that makes them, and the bias: adding it would be
    one more pass over all of them. Where the chain alone reads them; else the tokens."""
    entry = chain.entry
    bias = argument(entry.node, "bias") if op(entry.node) == "linear" else None
    if not isinstance(bias, Node) or entry.layout[-1:] != (chain.features,):
        return entry, None
    # The entry and its views and parts, down to the chain: nothing else may read them.
    own = {*chain.inner, chain.end}
    between = list(
        walk(
            entry.node,
            lambda node: [
                user for user in node.users if user not in own and op(user) != "sym_size"
            ],
        )
    )
    if not all(is_view(node) or op(node) in _PARTS for node in between[1:]):
        return entry, None
    # The op adds the bias as it reads a token: W x + b never stands in memory.
    for node in between:
        _read_sizes_elsewhere(chain.end.graph, node)
    product = builder.call(aten.linear.default, *entry.node.args[:2])
    return Operand(product, entry.layout), bias


def _on_tokens(
    builder: GraphBuilder, step: image_chains.ImageOp, tokens: Node, input_bias: Node | None
) -> tuple[Node, str]:
    """Insert one step on tokens [B, N, C], and name its operator; the first one may have to add a
    bias to them."""
    if isinstance(step, image_chains.Depthwise):
        sizes = (example_shape(step.weight)[0], step.image.height, step.image.width)
        activation = "gelu" if step.gelu else "none"
        arguments = (tokens, step.weight, step.bias, input_bias, *sizes, activation, step.gated)
        made = builder.call(torch.ops.moh.token_conv.default, *arguments)
        return made, op_names.TOKEN_CONV
    if isinstance(step, image_chains.Pointwise):
        weight = builder.call(aten.flatten.using_ints, step.weight, 1)  # [O, C]
        return builder.call(aten.linear.default, tokens, weight, step.bias), "linear"
    if isinstance(step, image_chains.BlockMean):
        return _block_mean(builder, step, tokens), "mean"
    node = step.node
    assert callable(node.target)
    return builder.call(node.target, tokens, *node.args[1:], **node.kwargs), op(node)


def _block_mean(builder: GraphBuilder, step: image_chains.BlockMean, tokens: Node) -> Node:
    """One side of the blocks after the other, each as a mean over the middle of three dimensions:
    a runtime reduces one dimension faster than two, and has fast code for no more dimensions."""
    (height, width), block = (step.image.height, step.image.width), step.block
    channels = example_shape(tokens)[-1]

    def mean_of(node: Node, size: int, inner: int) -> Node:
        blocks = builder.call(aten.reshape.default, node, [-1, size, inner])
        return builder.call(aten.mean.dim, blocks, [1])

    rows = mean_of(tokens, block[1], channels)  # [B * gh * bh * gw, C]
    means = mean_of(rows, block[0], width * channels)  # [B * gh, gw * C]
    # [B, gh * gw, C]
    return builder.call(aten.reshape.default, means, [-1, height * width, channels])


def _read_sizes_elsewhere(graph: Graph, node: Node) -> None:
    """Let who asks for a size of a node ask an earlier one, which stays."""
    for reader in list(node.users):
        if reader.target is aten.sym_size.int:
            extent = shape(node)[int(str(reader.args[1]))]
            reader.replace_all_uses_with(GraphBuilder(graph, reader).size(extent))
