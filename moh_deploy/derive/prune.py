"""Write a package that runs the same heads for every token: the plain rival of routing."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import onnx_ir as ir

from moh_deploy.errors import ConfigError
from moh_deploy.graph.choose_layers import choose_layers, ops_of
from moh_deploy.graph.layer_nodes import attention_flops, parameters, product_flops
from moh_deploy.graph.load_model import infer_types, load_ir
from moh_deploy.graph.narrowing import FixedHeads
from moh_deploy.graph.prune_heads import Pruned, prune_heads
from moh_deploy.graph.switch_by_size import without_switches
from moh_deploy.package import MODEL_NAME, LayerInfo, Made, Manifest, OnnxPackage, PackageWriter
from moh_deploy.perf.cost_model.first_choices import first_choices
from moh_deploy.perf.cost_model.milliseconds import Platform
from moh_deploy.report.document import Block, Document, Share, Table, Text
from moh_deploy.report.report import Report, count, si
from moh_deploy.runtime.kernel_use import choose_kernels
from moh_deploy.runtime.lowered_package import check_float32
from moh_deploy.system.progress import Progress
from moh_deploy.validate.compare.parity import publish_if_equal, require_equal
from moh_deploy.validate.compare.parity_report import ParityReport
from moh_deploy.validate.reference import samples
from moh_deploy.validate.reference.layer_values import HeadLoads, head_loads, with_fixed_gates

KeptBy = Literal["load", "gate"]


@dataclass(frozen=True)
class PrunedLayer:
    """One layer before and after."""

    path: str
    num_heads: int  # the heads that it had
    fixed: FixedHeads  # those that are left, with their gates
    num_kv_heads: (
        int | None
    )  # those that its attention reads now; None where its operator lacks them
    loads: HeadLoads  # how much each of its heads was used
    notes: tuple[str, ...] = ()  # what became of keys and values, where that has to be said

    @property
    def lost_load(self) -> float:
        """Share of all open gates that were of heads that are gone."""
        return _lost(self.loads.load, self.fixed.kept)

    @property
    def lost_mass(self) -> float:
        """Share of the sum of all gates' absolute values that was of heads that are gone."""
        return _lost(self.loads.mass, self.fixed.kept)


@dataclass(frozen=True)
class ModelSize:
    """The size of a model."""

    parameters: int  # numbers that its stored floats are
    # Twice the multiply-adds of products with weights, and of attention with all heads that there
    # are, at the example's sizes; None where a size is not known.
    flops: int | None


@dataclass(frozen=True)
class PruneReport(Report):
    """A package that runs the same heads for every token.

    Attributes:
        package: The directory that was written.
        source: The package that it was made from, of the size `before`.
        by: What heads were chosen by: `load` or `gate`.
        tokens: How many tokens were counted, in the layer that has most.
        parity: The comparison with the package that it was made from, the same gates fed to it.
    """

    package: Path
    source: Path
    by: str
    tokens: int
    layers: tuple[PrunedLayer, ...]
    before: ModelSize
    after: ModelSize
    parity: ParityReport

    def document(self) -> Document:
        """Return what it says."""
        kept = sum(len(layer.fixed.kept) for layer in self.layers)
        heads = sum(layer.num_heads for layer in self.layers)
        words = {"load": "how often they were open", "gate": "the sum of their gates"}[self.by]
        summary = f"{kept} of {count(heads, 'head')} kept by {words} over {self.tokens} tokens"
        before, after = self.before, self.after
        sizes = f"parameters: {si(before.parameters)} before, {si(after.parameters)} now"
        if before.flops is not None and after.flops is not None:
            sizes += (
                f"; FLOP a run: {si(before.flops)} with all heads before, {si(after.flops)} now"
            )
        rows = [
            (
                layer.path,
                layer.num_heads,
                ", ".join(map(str, layer.fixed.kept))
                + ("" if layer.fixed.is_cut else " (whole weights)"),
                layer.num_kv_heads,
                Share(layer.lost_load),
                Share(layer.lost_mass),
            )
            for layer in self.layers
        ]
        columns = ("layer", "#heads", "kept", "#key/value heads", "#load lost", "#gates lost")
        blocks: list[Block] = [
            Text(
                "EQUAL to the package with these gates fed to it, within the rule for float32:"
                f" largest error {self.parity.max_abs_error:.3g}",
                True,
            ),
            Text(f"{summary}; {sizes}"),
            Table("layers", columns, rows),
        ]
        notes = tuple(f"{layer.path}: {note}" for layer in self.layers for note in layer.notes)
        remarks = (
            f"It is another model than the original: --against {self.source} of `moh-deploy verify"
            f" {self.package} --inputs FILES --labels FILE` says what it loses.",
            f"written to {self.package}",
        )
        return Document("prune", tuple(blocks), findings=notes, remarks=remarks)


def _lost(used: tuple[float, ...], kept: tuple[int, ...]) -> float:
    total = sum(used)
    return 1 - sum(used[head] for head in kept) / total if total else 0.0


def write_pruned(
    package: OnnxPackage,
    output: Path,
    progress: Progress,
    *,
    keep: int | str,
    by: KeptBy = "load",
    inputs: Sequence[Path] = (),
    allow_whole: bool = False,
) -> PruneReport:
    """Write a float32 package with the same heads for every token; see `moh_deploy.prune`.

    Raises:
        ConfigError: An option or file does not fit, or a layer cannot be pruned.
        ValidationError: The package, or what was made, is not equal. Nothing is written.
    """
    check_float32(package)
    old = package.manifest
    numbers = _numbers(old, keep)
    # Padding is not counted.
    mask = samples.named_mask(old, None)
    measured = (
        samples.read_samples(inputs, old, mask)
        if inputs
        else samples.with_valid_tokens(samples.recorded_samples(package.vectors), old, mask)
    )
    with progress.step("comparing the package with its original model"):
        require_equal(package)
    with progress.step("counting heads"):
        loads = head_loads(package, measured)
    fixed = [load.most_used(number, by) for load, number in zip(loads, numbers, strict=True)]
    with progress.step("cutting weights"):
        model, before, pruned, fixed = _pruned(package, fixed, allow_whole)
        # As `before`, of a model whose layers do not depend on sizes yet.
        after = _size(model, pruned.layers, old)
        # Each layer runs as is predicted to be the fastest, as in an export.
        kernels = choose_kernels("auto", compute_type=old.compute_type)
        layers = first_choices(
            model,
            pruned.layers,
            platform=Platform(kernels.instruction_set, compute_type=kernels.compute_type),
            dims=old.dims,
            dim_ranges=old.dim_ranges,
        )
        choose_layers(model, layers)
    with progress.step("recording the package with these gates"):
        vectors = with_fixed_gates(package, fixed)
    made = f"the same heads for every token, {keep} heads a layer, chosen by {by}"
    manifest = _manifest(old, layers, fixed, before, after, f"{made}, with their mean gates")
    manifest = replace(manifest, ops=ops_of(model))
    with PackageWriter(output) as writer:
        with progress.step("writing the package"):
            writer.save_model(model, package)
            staged = writer.stage(manifest, vectors)
        with progress.step("comparing what was written with that"):
            written, parity = publish_if_equal(
                writer,
                staged,
                name="the pruned package",
                hint="It is compared with the package with the same gates fed to it: this is a"
                " fault of moh-deploy. Please report it with the model.",
            )
    return PruneReport(
        package=written.root,
        source=package.root,
        by=by,
        tokens=max((load.tokens for load in loads), default=0),
        layers=tuple(
            PrunedLayer(was.path, was.num_heads, heads, layer.num_kv_heads, used, notes)
            for was, layer, heads, used in zip(old.layers, layers, fixed, loads, strict=True)
            for notes in [pruned.notes.get(was.path, ())]
        ),
        before=before,
        after=after,
        parity=parity,
    )


def _numbers(manifest: Manifest, keep: int | str) -> list[int]:
    """Return how many heads each layer keeps."""
    if not manifest.layers:
        raise ConfigError("the package has no MoH layers, so there is nothing to prune.")
    text = str(keep).strip()
    number = text.removesuffix("%")
    try:
        asked = float(number) / 100 if text.endswith("%") else int(number)
    except ValueError:
        asked = 0
    if not asked > 0 or (text.endswith("%") and asked > 1):
        raise ConfigError(
            f"keep is '{keep}', expected a number of heads such as 12, or a share such as 75%."
        )
    if text.endswith("%"):
        return [max(1, round(asked * layer.num_heads)) for layer in manifest.layers]
    fewest = min(manifest.layers, key=lambda layer: layer.num_heads)
    if asked > fewest.num_heads:
        raise ConfigError(
            f"keep is {asked}, but layer '{fewest.path}' has {fewest.num_heads} heads.",
            hint="A share fits layers of any size: --keep 75%.",
        )
    return [int(asked)] * len(manifest.layers)


def _pruned(
    package: OnnxPackage, fixed: Sequence[FixedHeads], allow_whole: bool
) -> tuple[ir.Model, ModelSize, Pruned, list[FixedHeads]]:
    """Return the pruned model, the size of the whole one, and what is left of each layer.

    Raises:
        ConfigError: A layer cannot be pruned.
    """
    layers = package.manifest.layers
    model = load_ir(package)
    # Products in both branches of an If are one.
    without_switches(model)
    infer_types(model)
    before = _size(model, layers, package.manifest)
    pruned = prune_heads(model, layers, fixed)
    if pruned.reasons and allow_whole:
        # The model was changed in part: once more, with these layers left whole.
        fixed = [
            replace(heads, is_cut=layer.path not in pruned.reasons)
            for heads, layer in zip(fixed, layers, strict=True)
        ]
        model = load_ir(package)
        pruned = prune_heads(model, layers, fixed)
    if pruned.reasons:
        listed = "".join(f"\n  {path}: {why}" for path, why in pruned.reasons.items())
        hint = "--allow-whole lets such a layer keep its weights, with gates of 0 for the others."
        raise ConfigError(
            f"{len(pruned.reasons)} of {len(layers)} layers cannot be pruned:{listed}",
            hint="These cannot be left whole either." if allow_whole else hint,
        )
    return model, before, pruned, list(fixed)


def _size(model: ir.Model, layers: Sequence[LayerInfo], manifest: Manifest) -> ModelSize:
    products = product_flops(model, manifest.dims)
    attention = [attention_flops(layer) for layer in layers]
    known = [number for number in attention if number is not None]
    whole = None if products is None or len(known) < len(attention) else products + sum(known)
    return ModelSize(parameters(model), whole)


def _manifest(
    old: Manifest,
    layers: tuple[LayerInfo, ...],
    fixed: Sequence[FixedHeads],
    before: ModelSize,
    after: ModelSize,
    how: str,
) -> Manifest:
    """Return the manifest: what was measured of the original says nothing of this model."""
    flops = None
    if old.total_flops is not None and before.flops is not None and after.flops is not None:
        flops = old.total_flops - (before.flops - after.flops)
    kept = tuple(
        heads.kept if heads.is_cut else tuple(range(layer.num_heads))
        for heads, layer in zip(fixed, layers, strict=True)
    )
    made = Made(how, old.files[MODEL_NAME], kept)
    return replace(
        old, layers=layers, made=made, total_flops=flops, proof=None, rounding=None, tuning=None
    )
