"""Bring a traced program into the form that recognition and runtimes read well.

The passes, in the order in which they run:

vmap             first: no other pass can read its tensors
functionalize    then: all others read programs that change nothing in place
complex_pairs    complex numbers become pairs of real ones, which all others know
unread state     before anything is rewritten: of a functional program, changes are outputs
checks           of numbers in tensors: left out
assemble         writes into slices and masks become products, concatenations, masked_fill
spreads          products with matrices of 0 and 1 become repetitions

Then each node once, by what it is, in the order of the graph: `decompose` has a rule for an
operator (written-out softmax, im2col, several things at once, no effect), `factor` makes one
product of joined products of slices.

stack_heads      heads that are computed one by one become one tensor: of the operators above
read_tokens      attention computes what is read: of the softmax and the products of the others
join_parts       gates of heads are applied first, those of channels behind them; gates of parts of
                 the tokens are joined
join_routers     it asks for the gates that the other joins
merge_equal      last: passes before it may write one thing twice
"""

from torch.export import ExportedProgram

from moh_deploy.frontend.fx.builder import GraphBuilder
from moh_deploy.frontend.fx.graph import op
from moh_deploy.frontend.normalize.assemble import (
    read_assembled,
    read_written_masks,
    read_written_slices,
)
from moh_deploy.frontend.normalize.complex_pairs import pair_complex_numbers
from moh_deploy.frontend.normalize.decompose import (
    DIVISIONS,
    decompose,
    drop_no_op,
    replace_safe_softmax,
    replace_spreads,
    replace_unfold,
    replace_written_softmax,
)
from moh_deploy.frontend.normalize.factor import factor_out_slices, is_joined
from moh_deploy.frontend.normalize.fold import merge_equal
from moh_deploy.frontend.normalize.functionalize import (
    drop_checks_of_values,
    drop_unread_state,
    functionalize,
)
from moh_deploy.frontend.normalize.join_parts import join_parts, put_gates_before_channels
from moh_deploy.frontend.normalize.join_routers import join_routers
from moh_deploy.frontend.normalize.read_tokens import attend_for_read_tokens
from moh_deploy.frontend.normalize.stack_heads import stack_heads
from moh_deploy.frontend.normalize.stacked_ops import write_out_vmap

__all__ = ["normalize"]


def normalize(program: ExportedProgram) -> ExportedProgram:
    """Return a program of equal results without in-place operators, im2col, einsum of many tensors,
    softmax that is written out, dropout that drops nothing, casts to what is given, transpositions
    that undo one another, state that no result depends on, and what is computed twice.
    """
    write_out_vmap(program)
    program = functionalize(program)
    pair_complex_numbers(program)
    drop_unread_state(program)
    drop_checks_of_values(program)
    graph = program.graph_module.graph
    read_written_slices(graph)
    read_assembled(program)
    read_written_masks(program)
    replace_spreads(program)
    for node in list(graph.nodes):
        # An operator has one rule at most.
        builder = GraphBuilder(graph, node)
        if op(node) in DIVISIONS:
            replace_written_softmax(builder, node)
        elif op(node) == "where":
            replace_safe_softmax(builder, node)
        elif op(node) == "im2col":
            replace_unfold(builder, node)
        elif is_joined(node):
            product = factor_out_slices(builder, node)
            if product is not None:
                node.replace_all_uses_with(product)
        else:
            decompose(builder, node)
            drop_no_op(node)
    graph.eliminate_dead_code()  # the next ones ask who reads a tensor
    stack_heads(program)
    for node in list(graph.nodes):
        attend_for_read_tokens(node)
    for node in list(graph.nodes):
        put_gates_before_channels(node)
    for node in list(graph.nodes):
        join_parts(node)
    for node in list(graph.nodes):
        join_routers(node)
    merge_equal(program)
    graph.eliminate_dead_code()
    program.graph_module.recompile()
    return program
