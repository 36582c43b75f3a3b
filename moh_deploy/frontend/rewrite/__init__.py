"""Rewrite recognised layers into the ops of `moh_deploy.ops`.

The new operators are first inserted beside what they replace, so that one run of the program
computes both and compares them layer by layer; only what agrees is then committed.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import (
    ExportGraphSignature,
    OutputKind,
    OutputSpec,
    TensorArgument,
)
from torch.fx import Node
from torch.utils._pytree import tree_flatten, tree_leaves

from moh_deploy.frontend.fx.axes import Layout, flat, fresh_dim, leaves, regroup
from moh_deploy.frontend.fx.builder import GraphBuilder, LayoutBuilder, NotCoveredError, Operand
from moh_deploy.frontend.fx.graph import argument, is_tensor, rank, shape
from moh_deploy.frontend.fx.known_values import Constants, KnownValues, StoredNodes, is_random
from moh_deploy.frontend.fx.views import history
from moh_deploy.frontend.recognize import MoHLayer
from moh_deploy.frontend.recognize.aggregated import read_aggregated
from moh_deploy.frontend.recognize.cores.softmax import JOINT_SOFTMAX
from moh_deploy.frontend.recognize.mask_structure import CAUSAL, MaskReader, MaskStructure
from moh_deploy.frontend.recognize.mask_trials import MaskTrials
from moh_deploy.frontend.recognize.routers.forms import read_router
from moh_deploy.frontend.recognize.routers.router import Router
from moh_deploy.frontend.rewrite.attention import AttentionRewriter, InsertedMasks
from moh_deploy.frontend.rewrite.projections import apply_gates_first, project_output, project_query
from moh_deploy.frontend.rewrite.rewritten import Rewrite, Swap, drop_views, gates_of
from moh_deploy.frontend.rewrite.router import (
    insert_aggregated,
    insert_fixed_gates,
    insert_router,
    merge_logits,
)
from moh_deploy.frontend.rewrite.split import Splitter

__all__ = ["Rewrite", "commit", "insert"]


def insert(
    program: ExportedProgram, layers: Sequence[MoHLayer], trials: MaskTrials | None = None
) -> list[Rewrite]:
    """Insert the new operators beside the original ones.

    Args:
        trials: Inputs to try masks with; without them masks stay what they are.
    """
    inserter = _Inserter(program, None if trials is None else MaskReader(program, trials))
    rewrites = [inserter.insert(layer) for layer in layers]
    program.graph_module.recompile()
    return rewrites


class _Inserter:
    """Inserts operators for the layers of one program, and keeps what these share."""

    def __init__(self, program: ExportedProgram, masks: MaskReader | None) -> None:
        self._masks = masks
        self._inserted: InsertedMasks = {}
        self._program, self._graph = program, program.graph_module.graph
        self._constants, self._known = Constants(program), KnownValues(program)
        self._splitter = Splitter(self._graph, StoredNodes(self._graph, self._constants))

    def insert(self, layer: MoHLayer) -> Rewrite:
        """Insert the operators of one layer in front of its product with its gates: all that it
        needs is computed there."""
        builder = GraphBuilder(self._graph, layer.node)
        layouts = LayoutBuilder(builder)
        wanted: Layout = (layer.batch, layer.tokens, layer.heads)
        gates = gates_of(layer, layouts)
        # router -> [tokens, H] -> view [B, S, H] -> expand: the farthest that still has heads last
        # is what the router itself computed.
        heads = leaves(layer.heads)
        views = [Operand(*view) for view in history(gates, wanted)]
        computed = [view for view in views if view.layout and view.layout[-1] == heads][-1]
        scores = layer.core.scores
        query = None if scores is None else scores.query.node
        router = read_router(computed.node, query, self._constants)
        found = Rewrite(layer, router, gates, computed.node, reason=router.reason)
        if router.selection is not None:
            found = replace(found, scores=_scores(layouts, computed, router, wanted))
        if router.form.is_constant:
            gates = insert_fixed_gates(builder, gates, self._program) or gates
            found = replace(found, fixed_gates=gates)
        elif router.reason is None:
            # As early as the gates it takes over from, for their readers.
            early = GraphBuilder(self._graph, computed.node.next)
            routed = insert_router(early, router, computed.node)
            merge_logits(routed, computed.node, self._splitter.read)
            found = replace(found, routed=routed)
            gates = layouts.arrange(Operand(routed, computed.layout), wanted)
        try:
            found = self._insert_attention(found, gates, builder)
        except NotCoveredError as error:
            return replace(found, fixed_gates=None, reason=str(error))
        # The linear maps before and behind the attention become ops of their own.
        layer, attention, axes, read = found.layer, found.attention, found.axes, self._splitter.read
        assert attention is not None
        assert axes is not None
        read_gates = argument(attention, "gates")
        assert isinstance(read_gates, Node)
        output = Operand(attention, axes.output(packed=rank(attention) == 3))
        return replace(
            found,
            query_projection=project_query(
                layer, attention, read_gates, axes, read=read, swaps=found.swaps
            ),
            output_projection=project_output(layer, output, read_gates, axes, read=read),
        )

    def _insert_attention(self, found: Rewrite, gates: Node, builder: GraphBuilder) -> Rewrite:
        """Insert the op that can express the layer's attention, and the projection of its heads.

        Raises:
            NotCoveredError: If none can.
        """
        layer = found.layer
        if layer.outer_obstacles:
            raise NotCoveredError(layer.outer_obstacles[0])
        if layer.projection is None:
            return self._insert_op(found, gates, builder)
        moved, swap = apply_gates_first(layer, layer.projection, found.gates, builder)
        result = self._insert_op(replace(found, layer=moved), gates, builder)
        return replace(result, swaps=(*result.swaps, swap))

    def _insert_op(self, found: Rewrite, gates: Node, builder: GraphBuilder) -> Rewrite:
        layer, splitter = found.layer, self._splitter
        # One softmax over several products of queries and keys is the other op's form; of every
        # other layer MoHAttention takes what has no obstacle.
        if JOINT_SOFTMAX in layer.core.obstacles:
            form = read_aggregated(layer, self._known)
            swaps = splitter.split([source.piece.node for source in form.sources])
            found = replace(found, swaps=swaps)
            return insert_aggregated(found, self._program, form, gates, builder, splitter.alone)
        if layer.obstacles:
            raise NotCoveredError(layer.obstacles[0])
        found = replace(found, swaps=splitter.split(layer.core.operands))
        structure = None if self._masks is None else self._masks.structure(found.layer)
        if isinstance(structure, MaskStructure):
            inputs = [node for node, _ in structure.padding if node.op == "placeholder"]
            is_causal = structure.end == CAUSAL
            hidden_by = inputs[0] if is_causal and len(inputs) == 1 else None
            found = replace(found, mask=structure.words, hidden_by=hidden_by)
            rewriter = AttentionRewriter(found, builder, self._known, structure, self._inserted)
            return rewriter.build(gates)
        found = replace(
            found, mask=None if structure is None else f"no known structure: {structure}"
        )
        return AttentionRewriter(found, builder, self._known).build(gates)


def _scores(
    layouts: LayoutBuilder, computed: Operand, router: Router, wanted: Layout
) -> Node | None:
    """The ranked scores, with the tokens in the order of the gates: of logits the probabilities."""
    selection = router.selection
    assert selection is not None
    # Scores [tokens, R] or [B, S, R], heads at `selection.dim`: their other dimensions are those of
    # the gates, perhaps regrouped.
    extents = list(shape(selection.scores))
    candidates = fresh_dim(extents.pop(selection.dim))
    rows = regroup(flat(computed.layout[:-1]), extents)
    if rows is None:
        return None
    layout = [*rows]
    layout.insert(selection.dim, candidates)
    scores = Operand(selection.scores, tuple(layout))
    arranged = layouts.arrange(scores, (*wanted[:-1], candidates))
    routed = router.routed_logits
    if routed is None or routed.node is not selection.scores or router.form.ranks == "logits":
        return arranged
    return layouts.builder.call(torch.ops.aten.softmax.int, arranged, -1)


def commit(
    program: ExportedProgram, rewrites: Sequence[Rewrite], swaps: Sequence[Swap] = ()
) -> ExportedProgram:
    """Let the inserted operators take over, drop what they replace, and add each layer's gates to
    the outputs.

    Args:
        swaps: What was inserted outside of the layers.

    Returns:
        A program whose outputs are the tensors of the original outputs in order, followed by one
        [B, S, H] tensor of gates a layer, and by the `kept_view` of each layer that has one.
    """
    graph = program.graph_module.graph
    drop_views(rewrites)
    # This only redirects readers; the original operators, dead by then, are dropped at the end.
    for swap in (*swaps, *(swap for rewrite in rewrites for swap in rewrite.all_swaps)):
        swap.old.replace_all_uses_with(swap.new)
    for rewrite in rewrites:
        if rewrite.replacement is not None:
            rewrite.layer.node.replace_all_uses_with(rewrite.replacement)
        if rewrite.routed is not None:
            rewrite.computed_gates.replace_all_uses_with(rewrite.routed)
    output = next(node for node in graph.nodes if node.op == "output")
    leaves = [leaf for leaf in tree_leaves(output.args) if is_tensor(leaf)]
    # Where the gates are the router's own result, they are the MoHRouter's now; views of it read
    # it.
    gates = [
        rewrite.routed
        if rewrite.routed is not None and rewrite.gates is rewrite.computed_gates
        else rewrite.fixed_gates or rewrite.gates
        for rewrite in rewrites
    ]
    views = [rewrite.kept_view for rewrite in rewrites if rewrite.kept_view is not None]
    output.args = ((*leaves, *gates, *views),)
    # A dropout that is switched off, say, has no effect that anybody could miss.
    graph.eliminate_dead_code(lambda node: node.is_impure() and not is_random(node))
    program.graph_module.recompile()
    return _with_outputs(program, (*leaves, *gates, *views))


def _with_outputs(program: ExportedProgram, outputs: Sequence[Node]) -> ExportedProgram:
    """The program with a flat tuple of these tensors as its outputs."""
    signature = program.graph_signature
    specs = [
        OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(name=node.name), None) for node in outputs
    ]
    call = program.module_call_graph[0]
    assert call.signature is not None
    _, out_spec = tree_flatten(tuple(range(len(specs))))
    # No names, as torch leaves it: once torch traces the program again, it numbers pieces of splits
    # anew, and refuses what names the old ones. So would it those that files have of inner modules.
    root = replace(
        call, signature=replace(call.signature, inputs=[], outputs=[], out_spec=out_spec)
    )
    return ExportedProgram(
        root=program.graph_module,
        graph=program.graph_module.graph,
        graph_signature=ExportGraphSignature(signature.input_specs, specs),
        state_dict=program.state_dict,
        range_constraints=program.range_constraints,
        module_call_graph=[root],
        example_inputs=program.example_inputs,
        constants=program.constants,
        verifiers=[program.verifier],
    )
