"""From a loaded model to an ONNX model with its reference vectors: everything that needs torch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import onnx_ir as ir
import torch
from torch.export import ExportedProgram

from moh_deploy import package
from moh_deploy.errors import ExportError
from moh_deploy.frontend import limits
from moh_deploy.frontend.emit import emit, output_types
from moh_deploy.frontend.fx.arrays import dtype_name, shortest_float
from moh_deploy.frontend.fx.containers import output_names
from moh_deploy.frontend.inputs.program_inputs import unnamed_dims
from moh_deploy.frontend.inputs.sizes import SizeTrials, resize_inputs
from moh_deploy.frontend.limits import Ranges
from moh_deploy.frontend.load.model import LoadedModel, ModelInput, example_sizes
from moh_deploy.frontend.normalize import normalize
from moh_deploy.frontend.normalize.fold import fold_constants
from moh_deploy.frontend.normalize.functionalize import refuse_mutations
from moh_deploy.frontend.normalize.plain_attention import (
    prepare_plain_attention,
    refuse_flex_attention,
)
from moh_deploy.frontend.prove import original
from moh_deploy.frontend.prove.measured_rounding import divides_by_deviation, of_all_runs
from moh_deploy.frontend.prove.record import LayerRecord, Recording
from moh_deploy.frontend.prove.remedy import remedy
from moh_deploy.frontend.prove.size_runs import record_sizes
from moh_deploy.frontend.prove.valid_elements import ValidElements
from moh_deploy.frontend.recognize import Recognized, survey
from moh_deploy.frontend.rewrite import Rewrite, commit, insert
from moh_deploy.frontend.rewrite.masks import mask_trials, with_new_tokens, with_padding_input
from moh_deploy.frontend.rewrite.rewritten import Swap, view_attention
from moh_deploy.frontend.rewrite.tokens_first import insert_token_layout
from moh_deploy.frontend.trace import trace
from moh_deploy.graph.export_names import LayerNames, TranslatedLayer
from moh_deploy.graph.sequences import finish_export
from moh_deploy.system.progress import Progress


@dataclass(frozen=True)
class Converted:
    """An ONNX model and what was learned of the original on the way."""

    model: ir.Model  # the model, complete with function bodies
    inputs: tuple[package.TensorInfo, ...]
    outputs: tuple[package.TensorInfo, ...]
    dims: dict[str, int]  # dynamic dimension to example size
    layers: tuple[package.LayerInfo, ...]
    # Operators outside of layers that stay because their replacement differed.
    kept: tuple[package.KeptOperators, ...]
    found: Recognized  # what recognition says of attention outside of layers
    vectors: tuple[package.VectorSet, ...]  # runs of the original
    total_flops: int | None  # of the original at the example's sizes
    precision: str  # the shortest floating-point dtype among weights and outputs
    remedy: str | None  # what to do if a runtime computes something else; None if that is not known
    dim_ranges: Ranges  # dimension to the sizes that the trace is good for, where it limits them
    dim_sums: tuple[package.DimSum, ...]  # dimensions that the trace limits together
    limits: dict[str, str]  # why dimensions have such ranges, where that is no matter of size 0
    unnamed: dict[str, str]  # dimensions of a program that the user did not name: their places
    rounding: package.Rounding | None  # of the original; None where it does not run in float64
    # How the original takes the inputs; None where they are its positional arguments.
    call: package.Call | None
    valid_tokens: str | None  # the input that says which tokens are valid; None if all are
    new_tokens: str | None  # the dimension of the tokens that are the last ones of that input's
    # The inputs that the graph shows to tell padding, if the user named none; `not` before the name
    # of one that is 1 for padding.
    padding_inputs: tuple[str, ...]
    from_onnx: bool  # the original is an ONNX file, whose runs ONNX Runtime recorded


def convert(
    model: LoadedModel,
    inputs: Sequence[ModelInput],
    *,
    names: Sequence[str],
    opset: int,
    find_padding: bool = True,
    progress: Progress,
) -> Converted:
    """Trace, recognise, rewrite, check against the original, and translate to ONNX.

    Args:
        inputs: The user inputs, in order. One may say which tokens are valid.
        names: The user's names for the outputs; empty to derive them.
        find_padding: Look for that input in the graph where none says so.

    Raises:
        ExportError: If a step fails, or if the traced program is not the original model.
    """
    with progress.step("tracing the model"):
        program = _normalized_trace(model, inputs)
        ranges = limits.dim_ranges(program, inputs)
        relations, sums = limits.Relations.of(program, inputs), limits.dim_sums(program, inputs)
        joined, tables = limits.joined_dims(program, inputs), limits.cut_tables(program, inputs)
        outputs = output_names(program, names, [item.name for item in inputs])
    with progress.step("recognising MoH layers"):
        found = survey(program)
        inputs, shown = with_padding_input(program, found.layers, inputs, find_padding)
        rewrites = insert(program, found.layers, mask_trials(program, inputs))
        inputs = with_new_tokens(program, rewrites, inputs)
        swaps = insert_token_layout(program) if rewrites else []
        prepare_plain_attention(program)
        rewrites = view_attention(program, rewrites)
    with progress.step("recording the original model"), original.one_thread_if_small(model):
        example, flops = original.run_example(model, inputs)
        elements = ValidElements.of(program, inputs, outputs)
        sizes = record_sizes(
            SizeTrials(
                inputs,
                partial(original.run_original, model),
                ranges={n: span for n, span in ranges.items() if n not in relations.forms},
                complete=relations.complete,
            ),
            example,
            lambda run: original.try_to_record(
                *(program, rewrites, swaps, run, outputs),
                valid=elements.where(run.valid_tokens),
                measure_rounding=run is example or any(map(divides_by_deviation, rewrites)),
            ),
            flops=flops,
            may_be_empty=joined,
            sums=limits.with_tables(sums, ranges, tables),
            retraced=partial(_ranges_at, model, inputs),
        )
        rewrites = [_checked(r, i, sizes.recordings) for i, r in enumerate(rewrites)]
        agreeing, kept = _agreeing(swaps, sizes.recordings)
        # Outputs may be cast up after a model has computed in half.
        precision = shortest_float([*program.state_dict.values(), *example.outputs])
    with progress.step("translating to ONNX"):
        committed = commit(program, rewrites, agreeing)
        fold_constants(committed, by_torch=model.original is None)
        metadata = {} if model.original is None else model.original.source.metadata
        onnx_model, names_of = _translate(committed, rewrites, inputs, outputs, opset, metadata)
    # What a file was exported for is no finding of ours.
    own_ranges = {} if model.program is None else limits.dim_ranges(model.program, inputs)
    own = {
        name: "the program was exported so"
        for name in sizes.reasons
        if own_ranges.get(name) == sizes.ranges.get(name)
    }
    return Converted(
        model=onnx_model,
        inputs=tuple(item.info for item in inputs),
        outputs=tuple(map(_output_info, onnx_model.graph.outputs)),
        dims=example_sizes(inputs),
        layers=tuple(
            _layer_info(rewrite, named, [recording.layers[i] for recording in sizes.recordings])
            for i, (rewrite, named) in enumerate(zip(rewrites, names_of, strict=True))
        ),
        kept=kept,
        found=found,
        vectors=tuple(
            original.recorded_vectors(run, recording, outputs)
            for run, recording in zip(sizes.runs, sizes.recordings, strict=True)
        ),
        total_flops=flops,
        precision=dtype_name(precision),
        remedy=remedy(program, precision, sizes),
        dim_ranges=relations.complete_ranges(sizes.ranges),
        dim_sums=limits.with_tables(sums, sizes.ranges, tables),
        limits=sizes.reasons | own,
        unnamed={} if model.program is None else unnamed_dims(model.program, inputs),
        rounding=of_all_runs([recording.rounding for recording in sizes.recordings]),
        call=None if model.call is None or model.call.is_plain else model.call,
        valid_tokens=next((item.mask_name for item in inputs if item.says_valid), None),
        new_tokens=next((item.new_tokens for item in inputs if item.says_valid), None),
        padding_inputs=shown,
        from_onnx=model.original is not None,
    )


def _normalized_trace(model: LoadedModel, inputs: Sequence[ModelInput]) -> ExportedProgram:
    """Trace a model and normalise the program.

    Raises:
        ExportError: The model fails, cannot be traced, or changes its inputs or its own state.
    """
    try:
        program = trace(model, inputs)
    except ExportError:
        original.run_example(model, inputs)  # the model itself may fail on these inputs
        raise
    refuse_flex_attention(program)
    program = normalize(program)
    refuse_mutations(program)
    return program


def _ranges_at(
    model: LoadedModel, inputs: Sequence[ModelInput], name: str, size: int
) -> Ranges | None:
    """Return the ranges of a trace at another size of a dimension; None if it cannot be traced."""
    if model.module is None:
        return None
    resized = resize_inputs(inputs, {name: size})
    try:
        return limits.dim_ranges(trace(model, resized), resized)
    except ExportError:
        return None


def _translate(
    program: ExportedProgram,
    rewrites: Sequence[Rewrite],
    inputs: Sequence[ModelInput],
    outputs: Sequence[str],
    opset: int,
    metadata: Mapping[str, str],
) -> tuple[ir.Model, tuple[LayerNames, ...]]:
    """Return the ONNX model of a committed program, and how its layers are named in it."""
    model = emit(program, input_names=[item.name for item in inputs], opset=opset)
    layers = [
        TranslatedLayer(
            path=rewrite.layer.path,
            replaced=rewrite.replacement is not None,
            viewed=rewrite.kept_view is not None,
        )
        for rewrite in rewrites
    ]
    names = finish_export(
        model,
        layers,
        dims=[item.parsed_dims for item in inputs],
        outputs=outputs,
        output_types=list(output_types(program)),
        opset=opset,
    )
    model.metadata_props.update(metadata)
    return model, names


def _checked(rewrite: Rewrite, index: int, recordings: Sequence[Recording]) -> Rewrite:
    """A layer whose new operators differ from the original ones in any run stays as it is."""
    found = [recording.layers[index].disagreement for recording in recordings]
    scores = rewrite.layer.core.scores
    mixed = "" if scores is None else scores.mixed_masks
    return next((rewrite.kept(why + mixed) for why in found if why is not None), rewrite)


def _agreeing(
    swaps: Sequence[Swap], recordings: Sequence[Recording]
) -> tuple[list[Swap], tuple[package.KeptOperators, ...]]:
    """The swaps whose nodes agree in each run, and the others, which are not made."""
    agreeing: list[Swap] = []
    kept: list[package.KeptOperators] = []
    for index, swap in enumerate(swaps):
        differences = [d for run in recordings if (d := run.disagreements[index]) is not None]
        if not differences:
            agreeing.append(swap)
            continue
        # A difference that is no number counts as the largest.
        errors = [math.inf if d.max_abs_error is None else d.max_abs_error for d in differences]
        worst = differences[errors.index(max(errors))]
        kept.append(
            package.KeptOperators(
                swap.path, swap.replaced, swap.inserted, worst.max_abs_error, reason=worst.words
            )
        )
    return agreeing, tuple(kept)


def _layer_info(
    rewrite: Rewrite, names: LayerNames, records: Sequence[LayerRecord]
) -> package.LayerInfo:
    batch, seq_len, num_heads = records[0].gates.shape
    counted = [record.gates[record.counted] for record in records]  # [tokens, H], no padding
    open_gates = sum(int((gates != 0).sum()) for gates in counted)
    closed: list[int] = []
    fixed = rewrite.router.fixed_gates  # [..., H] where no input changes them
    if fixed is not None:
        closed = torch.nonzero((fixed == 0).reshape(-1, num_heads).all(0)).flatten().tolist()
    return package.LayerInfo(
        path=names.layer,
        num_heads=num_heads,
        num_kv_heads=rewrite.num_kv_heads,
        head_dim=rewrite.head_dim,
        num_shared_heads=rewrite.router.num_shared_heads,
        top_k=rewrite.router.top_k,
        router=rewrite.router.form.name,
        router_replaced=rewrite.routed is not None,
        replaced=rewrite.replacement is not None,
        reason=rewrite.reason,
        op=rewrite.op,
        node=names.node,
        query_projection=names.query_projection,
        output_projection=names.output_projection,
        gates=names.gates,
        batch=batch,
        seq_len=seq_len,
        kv_len=rewrite.kv_len,
        active_share=open_gates / max(1, sum(gates.numel() for gates in counted)),
        attention=names.attention,
        closed_heads=tuple(closed),
        mask=rewrite.mask,
    )


def _output_info(value: ir.Value) -> package.TensorInfo:
    assert value.name is not None
    assert value.dtype is not None
    assert value.shape is not None
    shape = tuple(dim if isinstance(dim, int) else str(dim.value) for dim in value.shape)
    return package.TensorInfo(value.name, str(value.dtype.numpy()), shape)
