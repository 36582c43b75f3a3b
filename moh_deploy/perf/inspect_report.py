"""Report the content of a package."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from moh_deploy.config.dims import limits_text
from moh_deploy.config.dtypes import PRECISIONS
from moh_deploy.graph.layer_nodes import (
    LayerNodes,
    attention_flops,
    projection_flops,
    skippable_flops,
    skipped_flops,
)
from moh_deploy.ops.cases import numpy_dtype
from moh_deploy.package import LayerInfo, Manifest, choices_for
from moh_deploy.perf import choices_text, time_drawings
from moh_deploy.perf.choices_text import ChoiceFigures, choice_figures
from moh_deploy.perf.cost_model.prediction import Prediction, SpeedByShare, shape_of
from moh_deploy.report.document import (
    DETAILED,
    Block,
    Cell,
    Document,
    Fact,
    Folded,
    Section,
    Table,
    Text,
    Verdict,
    percent,
)
from moh_deploy.report.report import FLAT, HIDDEN, Report, count, in_json, si
from moh_deploy.runtime import layers_text
from moh_deploy.runtime.kernel_use import KernelUse
from moh_deploy.runtime.layer_runs import LayerImpl, LayerRun
from moh_deploy.validate.compare.routing_statistics import RecordedLoad, recorded_section

# What skipping heads can save a language model: of a prompt's work, and of what a step reads.
#
# A prompt is multiplied: what counts are multiply-adds. A step of one token is read: every weight
# once, and the cache. Keys of a group of query heads are read if one of these is open, so that
# grouped queries save little of the cache.

_LENGTHS = (512, 8192)


@dataclass(frozen=True)
class DecoderSavings:
    """The most that skipping heads can save at a length, for one sequence."""

    length: int  # tokens of the prompt, or in the cache
    prompt_share: float  # of the multiply-adds of such a prompt
    step_share: float  # of the bytes that a step reads behind so many tokens
    cache_share: float  # of the cache's part of these bytes


def decoder_savings(
    manifest: Manifest, nodes: Sequence[LayerNodes], weight_bytes: int
) -> tuple[DecoderSavings, ...]:
    """Return what can be saved at some lengths; nothing where a size is not known.

    Args:
        nodes: The operators of each layer.
        weight_bytes: Of all weights.
    """
    about, tokens = manifest.text_generation, manifest.dims.get("seq", 0)
    tokens *= manifest.dims.get("batch", 0)
    layers = list(zip(manifest.layers, nodes, strict=True))
    found = [shape_of(*pair) for pair in layers]
    shapes = [shape for shape in found if shape is not None]
    if about is None or not manifest.total_flops or not tokens or len(shapes) != len(layers):
        return ()
    if not shapes:
        return ()
    cores = sum(attention_flops(layer) or 0 for layer, _ in layers)
    others = (manifest.total_flops - cores) / tokens  # of a token, whatever stands before it
    projections = [(projection_flops(*pair) or 0) / tokens for pair in layers]
    weight = PRECISIONS[manifest.precision].weight_bytes
    # Of a number in the cache: that of a package in few bits is in float32.
    caches = [info for info in manifest.inputs if info.name.startswith("past_key_values.")]
    cached = numpy_dtype(caches[0].dtype if caches else "float32").itemsize
    lengths = {min(length, about.context_length or length) for length in _LENGTHS}

    def at(length: int) -> DecoderSavings:
        # Two products of scores and values, a multiplication and an addition each.
        cores = [4 * shape.width * length**2 for shape in shapes]
        skipped = sum(
            (1 - shape.active_share) * (core + projected * length)
            for shape, core, projected in zip(shapes, cores, projections, strict=True)
        )
        idle = read = weights = 0.0
        for shape in shapes:
            step = replace(shape, batch=1, seq_len=1, kv_len=length)
            cache = 2 * step.num_kv_heads * step.head_dim * length * cached
            idle, read = idle + (1 - step.read_kv_share) * cache, read + cache
            features = (step.query_features or 0) + (step.output_features or 0)
            weights += (1 - step.used_head_share) * step.width * features * weight
        return DecoderSavings(
            length,
            prompt_share=skipped / (others * length + sum(cores)),
            step_share=(idle + weights) / (weight_bytes + read),
            cache_share=idle / read,
        )

    return tuple(map(at, sorted(lengths)))


def savings_lines(found: Sequence[DecoderSavings]) -> Iterator[str]:
    """Format the savings as text lines."""
    for savings in found:
        yield (
            f"at {savings.length} tokens skipping heads saves at most"
            f" {100 * savings.prompt_share:.1f} % of a prompt's multiply-adds,"
            f" and {100 * savings.step_share:.1f} % of what a step reads"
            f" ({100 * savings.cache_share:.1f} % of the cache), routing being even"
        )


@dataclass(frozen=True)
class InspectedLayer:
    """A layer of the manifest and what is known of it besides, as JSON has it."""

    layer: LayerInfo = field(metadata=FLAT)
    runs_as: LayerImpl | None
    router_runs_as: LayerImpl | None
    projections_run_as: LayerImpl | None
    by_size: str | None
    attention_flops: int | None
    projection_flops: int | None
    skippable_flops: int | None
    skipped_flops: int | None
    choices: ChoiceFigures = field(metadata=FLAT)


@dataclass(frozen=True)
class InspectReport(Report):
    """The answer of `inspect`: the layers of a package, and what a runtime runs them by.

    Attributes:
        package: The package.
        manifest: What the package says of itself.
        layer_runs: What runs each layer of the manifest, read from the runtime.
        layer_nodes: The operators of each layer.
        predictions: How long each layer is predicted to take; None where nothing can be said.
        runtime: Name and version of the runtime that was asked.
        kernels: The kernel library that was registered, or why none was.
        node_runs: What runs each node of a custom op, those of no layer included.
        savings: What skipping heads can save a language model, at some lengths.
        recorded_sizes: The sizes of each dynamic dimension that were run at export; no others are
            proven, whatever `dim_ranges` of the manifest allows.
        head_loads: Which heads of each layer were on in the recorded runs.
        speed: The predicted speed of all layers by the share of open heads; None if unknown.
    """

    package: Path
    manifest: Manifest = field(metadata=FLAT)
    layer_runs: tuple[LayerRun, ...] = field(metadata=HIDDEN)
    layer_nodes: tuple[LayerNodes, ...] = field(metadata=HIDDEN)
    predictions: tuple[Prediction | None, ...] = field(metadata=HIDDEN)
    runtime: str
    kernels: KernelUse
    node_runs: Mapping[str, LayerImpl] = field(default_factory=dict)
    savings: tuple[DecoderSavings, ...] = ()
    recorded_sizes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    head_loads: tuple[RecordedLoad, ...] = ()
    speed: SpeedByShare | None = None

    @property
    @in_json()
    def skippable_flops(self) -> int | None:
        """FLOPs of replaced layers that no token asks for; None if unknown."""
        return _total([skippable_flops(*pair) for pair in self._layers()])

    @property
    @in_json()
    def skipped_flops(self) -> int | None:
        """Return the multiply-adds that the layers' modes skip; None if unknown."""
        return _total([skipped_flops(*pair, self.manifest.dims) for pair in self._layers()])

    @property
    @in_json()
    def skippable_share(self) -> float | None:
        """`skippable_flops` as a share of all FLOPs of the model; None if unknown."""
        return self._share(self.skippable_flops)

    @property
    @in_json()
    def skipped_share(self) -> float | None:
        """Return the share of `skipped_flops`."""
        return self._share(self.skipped_flops)

    def _layers(self) -> Iterator[tuple[LayerInfo, LayerNodes]]:
        return zip(self.manifest.layers, self.layer_nodes, strict=True)

    def _share(self, flops: int | None) -> float | None:
        total = self.manifest.total_flops
        return flops / total if total and flops is not None else None

    @property
    @in_json()
    def moh_layers(self) -> int:
        """Return the number of MoH layers."""
        return len(self.manifest.layers)

    @property
    @in_json()
    def replaced_layers(self) -> int:
        """Return the number of layers that are operators."""
        return sum(layer.replaced for layer in self.manifest.layers)

    # In place of the manifest's own list, which is flat in JSON and has fewer keys.
    @property
    @in_json("layers")
    def _inspected(self) -> tuple[InspectedLayer, ...]:
        runs = zip(self._layers(), self.layer_runs, self.predictions, strict=True)
        return tuple(
            InspectedLayer(
                layer=layer,
                runs_as=run.runs_as,
                router_runs_as=run.router_runs_as,
                projections_run_as=run.projections_run_as,
                by_size=run.by_size,
                attention_flops=attention_flops(layer),
                projection_flops=projection_flops(layer, nodes),
                skippable_flops=skippable_flops(layer, nodes),
                skipped_flops=skipped_flops(layer, nodes, self.manifest.dims),
                choices=choice_figures(self.manifest, prediction, index),
            )
            for index, ((layer, nodes), run, prediction) in enumerate(runs)
        )

    def document(self) -> Document:
        """Return what it says."""
        tensors: list[tuple[Cell, ...]] = [
            (kind, info.name, info.dtype, f"[{', '.join(map(str, info.shape))}]")
            for kind, infos in (("input", self.manifest.inputs), ("output", self.manifest.outputs))
            for info in infos
        ]
        columns = ("role", "name", "dtype", "shape")
        cores = Counter(run.runs_as or "not replaced" for run in self.layer_runs)
        answer = ", ".join(f"{number} {kind}" for kind, number in cores.items())
        if not self.layer_runs:
            answer = "nothing to skip"
        elif self.skipped_share is not None:
            answer += f"; kernels skip {percent(self.skipped_share)} of the whole model's work"
        blocks: list[Block] = list(self._drawn())
        if self.layer_runs:
            title = f"layers, as read from {self.runtime}"
            cells = list(map(layers_text.runs_as, self.layer_runs))
            layers = layers_text.layer_table(title, self.manifest.layers, "runs as", cells)
            blocks.append(replace(layers, most_rows=choices_text.MOST_ROWS))
        if any(map(choices_for, self.manifest.layers)):
            choices = self.manifest, self.predictions
            blocks += (choices_text.choice_summary(*choices), choices_text.choice_table(*choices))
        # A language model has hundreds of caches: they come last.
        tensors.sort(key=lambda row: str(row[1]).startswith(("past_key_values.", "present.")))
        table = Table("inputs and outputs", columns, tensors, most_rows=4)
        blocks.append(Folded("Inputs and outputs", (table,)))
        details = tuple(Text(line) for line in self._details())
        blocks.append(Section("Details", details, shown=DETAILED))
        word = count(len(self.layer_runs), "MoH layer")
        verdict = Verdict(word, None, f"{answer}.", (answer,))
        return Document(
            "inspect",
            tuple(blocks),
            verdict,
            tuple(self._facts()),
            tuple(self._lines()),
        )

    def _drawn(self) -> Iterator[Block]:
        manifest = self.manifest
        if any(load.tokens for load in self.head_loads):
            yield recorded_section(self.head_loads)
        tuning = manifest.tuning
        if tuning is not None and tuning.source == "measured":
            yield from time_drawings.measured_times(manifest.layers, tuning)
        else:
            yield from time_drawings.predicted_times(manifest, self.predictions)
        yield from time_drawings.speed_section(self.speed)

    def _facts(self) -> Iterator[Fact]:
        if not self.layer_runs:
            return
        kernels = sum(run.runs_as == "kernel" for run in self.layer_runs)
        yield Fact("MoH layers on a kernel", f"{kernels} of {len(self.layer_runs)}")
        skipped, most = percent(self.skipped_share), percent(self.skippable_share)
        if skipped is not None:
            yield Fact("work that kernels skip", skipped, f"of the whole model; at most {most}")
        if self.speed is not None:
            even = self.speed.break_even
            note = f"faster than dense up to {percent(even)}"
            if even is None or even == 1:
                note = f"{'dense' if even is None else 'sparse'} is faster at every share"
            share = str(percent(self.speed.active_share))
            yield Fact("open heads", share, f"predicted: {note}")
        yield Fact("precision", self.manifest.precision)

    def _lines(self) -> Iterator[str]:
        manifest = self.manifest
        if manifest.layers:
            yield from layers_text.reasons(manifest.layers)
            yield from layers_text.constant_gates(manifest.layers)
        yield from layers_text.not_layers(
            len(manifest.layers), manifest.near_misses, manifest.ungated, manifest.other_gates
        )
        yield from map(layers_text.other_router_text, manifest.other_routers)
        if manifest.layers:
            yield from map(layers_text.kept_text, manifest.kept)
            yield from choices_text.choice_lines(manifest, self.predictions, self.kernels)
            yield f"skippable: {self._skippable_text()}"
        yield from savings_lines(self.savings)
        yield f"dynamic dimensions: {'; '.join(map(self._dim_text, manifest.dims)) or 'none'}"
        if manifest.caches is not None:
            yield layers_text.caches_text(manifest.caches)
        yield self.kernels.describe()
        proof = manifest.proof
        if proof is None:
            yield "proof: none recorded"
        else:
            yield (
                f"proof: max abs error {proof.max_abs_error:.3g}, routing agreement"
                f" {proof.routing_agreement:.6g} over {len(proof.sizes)} runs of the original model"
            )

    def _details(self) -> Iterator[str]:
        """Yield what a terminal has no room for."""
        manifest = self.manifest
        if self.skippable_flops:
            yield (
                "skippable are both matrix products of the attention cores of replaced layers, and"
                " their projections that are operators, for the (token, head) pairs with a zero"
                " gate, at the example's sizes"
            )
        yield from layers_text.router_legend(manifest.layers)
        yield from layers_text.masks(manifest.layers)
        ops = ", ".join(f"{name} v{version}" for name, version in manifest.ops.items())
        yield f"opset {manifest.opset}; custom ops: {ops or 'none'}"
        if self.node_runs:
            ways = list(self.node_runs.values())
            yield layers_text.nodes_text(ways.count("kernel"), ways.count("function"))
        yield f"precision: {manifest.precision}; compute type: {manifest.compute_type}"

    def _dim_text(self, name: str) -> str:
        """Return `seq 1 to 64 by the trace, run at 5, 6`: what is claimed, and what was tried."""
        claimed = limits_text(self.manifest.dim_ranges.get(name, (1, None)))
        run = ", ".join(map(str, self.recorded_sizes.get(name, ()))) or "no size"
        return f"{name} {claimed} by the trace, run at {run}"

    def _skippable_text(self) -> str:
        if self.skippable_flops is None or self.skipped_flops is None:
            return "unknown, because a layer's sizes or active share are"
        share = percent(self.skippable_share) or "an unknown share"
        chosen = percent(self.skipped_share) or "an unknown share"
        return (
            f"{si(self.skippable_flops)}FLOP, {share} of the whole model; as the layers are chosen"
            f" to run, kernels skip {si(self.skipped_flops)}FLOP, {chosen}"
        )


def _total(parts: Sequence[int | None]) -> int | None:
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None
