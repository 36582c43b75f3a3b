"""Bisect a package: find where it diverges, why, and which nodes have to be in float32."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import onnx
import onnx_ir as ir

from moh_deploy.errors import ConfigError
from moh_deploy.graph.choose_layers import choose_layers
from moh_deploy.graph.float32_form import LOW, check_reference
from moh_deploy.graph.layer_nodes import attention_flops
from moh_deploy.ops import op_names
from moh_deploy.package import Float32Node, Manifest, OnnxPackage, PackageWriter
from moh_deploy.package.writer import model_bytes
from moh_deploy.runtime.lowered_package import check_float32, router_types
from moh_deploy.runtime.variants import PackageVariants
from moh_deploy.system.progress import Progress
from moh_deploy.validate.bisection.divergence import InnerValue
from moh_deploy.validate.bisection.experiments import Experiments
from moh_deploy.validate.bisection.locate import IN_GRAPH, Cause, Located, locate
from moh_deploy.validate.bisection.mixed_precision import (
    Form,
    MixedPrecision,
    SearchStep,
    Trials,
    ranked_nodes,
)
from moh_deploy.validate.bisection.places import ForcedModel, ModelGraph, graph_of, what_runs
from moh_deploy.validate.bisection.report import BisectReport, Repair
from moh_deploy.validate.compare.parity import proof_of
from moh_deploy.validate.compare.parity_report import ParityReport
from moh_deploy.validate.reference.samples import recorded_samples


def check_packages(
    package: OnnxPackage,
    reference: OnnxPackage | None,
    output: Path | None,
    to: str | None,
    inputs: Sequence[Path | str],
) -> None:
    if to is not None:
        check_float32(package)
        if reference is not None:
            raise ConfigError("to lowers the package, which is its own reference: give one of two.")
        return
    if reference is not None:
        check_reference(package, reference)
    precision = package.manifest.precision
    # A float32 package cannot be its own reference: it may be what is wrong.
    if inputs and precision not in LOW and reference is None:
        raise ConfigError(
            f"{package.root} is in {precision}: what it should compute on other inputs than the"
            " recorded ones is not known.",
            hint="Give a package that is right with --reference.",
        )
    if output is not None and precision not in LOW:
        raise ConfigError(
            f"{package.root} is in {precision}: there is nothing to put into float32, so no"
            " repaired package to write.",
            hint="Leave --output out: bisect says where the package diverges.",
        )


def find_and_repair(
    runs: Experiments, folder: Path, output: Path | None, most: int, progress: Progress
) -> BisectReport:
    """Find where a package diverges, and the nodes that need float32.

    Args:
        folder: A directory to make packages in.
        output: Where to write the repaired package; None for not at all.
        most: How many packages may be made and run.

    Raises:
        ValidationError: There are no recorded runs, or they do not tell.
    """
    with progress.step("comparing with the recorded runs"):
        if not runs.vectors or runs.cannot_tell:
            runs.parity.raise_if_unequal()
        report = BisectReport(
            runs.package.root,
            runs.precision,
            runs.parity.reference,
            runs.reasons,
            target=runs.target,
            passes_verify=runs.parity.equal,
        )
    if not report.reasons:
        return report
    with progress.step("finding where it diverges"):
        located = locate(runs)
    report = replace(
        report,
        divergence=located.divergence,
        errors=located.errors,
        notes=_notes(runs, located.divergence.cause),
    )
    # A repair puts nodes into float32: in a float32 package all of them are there already.
    if runs.float32 is None:
        return report
    job = RepairJob(runs, located, folder / "trials", output, most, progress.step)
    repair, why_not = job.look()
    return replace(report, repair=repair, why_no_repair=why_not)


def _notes(runs: Experiments, cause: Cause) -> tuple[str, ...]:
    notes = []
    if cause in ("kernel", "optimisation") and runs.target is not None and runs.parity.equal:
        notes.append(
            "`verify` passes here: beside a target as small as this, rounding of float32 in another"
            " order may be all that is wrong."
        )
    if runs.parity.equal and runs.target is None and runs.precision == "float16":
        notes.append(
            "`verify` passes here: ONNX Runtime on the CPU computes runs of float16 operators in"
            " float32, and rounds at their ends. This is with every result rounded, as on GPUs."
        )
    if not runs.plain.gates and runs.package.manifest.layers:
        why = PackageVariants(runs.package).why_not_forced()
        notes.append(f"The reference gates were not fed to the model: {why}.")
    return tuple(notes)


# Write a package again with the nodes in float32 that need it, and prove it.

_NO_NODES = "so no choice of nodes makes it right."
_WRONG_ITSELF = f"In float32 it is wrong as well, {_NO_NODES}"
_ABOVE_TARGET = f"In float32 it is off by more than the target as well, {_NO_NODES}"
_EVERY_NODE = "With every node in float32"
_NO_REFERENCE = (
    "Its weights were taken as they are, rounded: if it was lowered from a package in float32, give"
    " that as --reference."
)


@dataclass
class RepairJob:
    """Finds the nodes of a package in lower precision that have to be in float32."""

    runs: Experiments  # of a package that is not right
    located: Located  # what is wrong with it
    scratch: Path  # a directory to make packages in
    output: Path | None  # where to write the package again; None for not at all
    most: int  # how many packages may be made and run
    step: SearchStep  # encloses each of them

    def look(self) -> tuple[Repair | None, str | None]:
        """Return the repair, or a sentence with the reason against it."""
        cause = self.located.divergence.cause
        # A float32 package has no nodes to raise, and wrong kernels or optimisations are not cured
        # by it.
        if self.runs.float32 is None or cause in ("kernel", "optimisation"):
            return None, None
        if cause in IN_GRAPH:
            why = _WRONG_ITSELF if cause == "graph" else _ABOVE_TARGET
            return None, f"{why}{'' if self.runs.reference else f' {_NO_REFERENCE}'}"
        mixed = self.mixed_precision()
        return (None, self.why_no_mixed_precision()) if mixed is None else (self.write(mixed), None)

    @property
    def form(self) -> Form:
        assert self.runs.float32 is not None
        return self.runs.float32

    @cached_property
    def graph(self) -> ModelGraph:
        return graph_of(self.runs.unrounded)

    @cached_property
    def trials(self) -> Trials:
        return self._trials(self.runs.sound)

    def mixed_precision(self) -> MixedPrecision | None:
        """Search by the outputs and gates of runs with forced routing; if that is not enough for
        `verify`, whose noise floor sinks with what is kept, search again by all that it asks."""
        errors = self.located.errors
        found = self.trials.find_mixed_precision(self.graph, errors)
        # The first search is the cheaper one: it needs no free run and no noise floor for each
        # trial.
        if found is None or self._parity(self.trials.make(found.keep)).equal:
            return found
        # The noise floor sinks with the nodes kept, so `verify` can refuse what passed above.
        sound = self.runs.sound
        self.trials = self._trials(lambda model: sound(model) and self._parity(model).equal)
        again = self.trials.find_mixed_precision(self.graph, errors)
        return None if again is None else replace(again, trials=found.trials + again.trials)

    def why_no_mixed_precision(self) -> str:
        """Say what is wrong with the last trial, that of every node in float32."""
        every = ranked_nodes(self.form, self.graph, ())
        runs, model = self.runs, self.trials.make({x.place.value: x.reason for x in every})
        # From the graph outwards: as written, then by the target, then as the runtime runs it.
        if not runs.right(model):
            low = f"inputs, outputs and what only moves numbers are in {self.form.low}"
            return f"{_EVERY_NODE} it is wrong as well: {low}."
        if runs.target is not None and runs.allowed(runs.as_run(model)):
            return (
                f"{_EVERY_NODE} it is within the target as it is written. As ONNX Runtime runs it,"
                " it is off by more, and by no more than `verify` allows: rounding of float32 alone"
                " may be above the target."
            )
        return (
            f"{_EVERY_NODE} it is right as it is written, and wrong as ONNX Runtime runs it:"
            f" {'optimisations' if runs.kernels == 'off' else 'kernels or optimisations'} are wrong"
            f" as well.{'' if runs.kernels == 'off' else ' Try --kernels off.'}"
        )

    def write(self, mixed: MixedPrecision) -> Repair:
        """Write the package again if that was asked for, and compare it as `verify` does."""
        share = flops_share(self.graph, self.located.values, mixed.keep)
        # Sizes for the report: what keeping the nodes costs on disk.
        before, weights = model_bytes(self.runs.package), self.form.weights
        with self.step("proving the repaired package"):
            if self.output is None:
                model = self.trials.make(mixed.keep)
                made, parity, written = model.package, self._parity(model), None
            else:
                made, parity = self._publish(mixed, self.output)
                written = made.root
        return Repair(mixed, weights, before, model_bytes(made), share, parity, written)

    def _trials(self, accepts: Callable[[ForcedModel], bool]) -> Trials:
        forced = bool(self.runs.plain.gates)
        return Trials(self.form, accepts, self.scratch, forced, self.most, self.step)

    def _parity(self, model: ForcedModel) -> ParityReport:
        """Compare a package with all recorded runs, whichever were looked at."""
        recorded = recorded_samples(self.runs.package.vectors)
        return self.runs.compare(self.runs.as_run(model), recorded)

    def _publish(self, mixed: MixedPrecision, output: Path) -> tuple[OnnxPackage, ParityReport]:
        package = self.runs.package
        with PackageWriter(output) as writer:
            model = self.form.lowered(mixed.keep)
            # The float32 form has every node in domain `moh`, so the layers' choices are made
            # again.
            choose_layers(model, package.manifest.layers)
            writer.save_model(model, package)
            staged_manifest = _manifest(package.manifest, model, mixed)
            manifest = writer.stage(staged_manifest, package.vectors, package.corpus)
            staged = OnnxPackage.open(writer.root, staged=True)
            parity = self._parity(ForcedModel(staged, {}))
            # Inside the writer: a package that fails is never published.
            parity.raise_if_unequal()
            return writer.publish(replace(manifest, proof=proof_of(parity, staged))), parity


def _manifest(manifest: Manifest, model: ir.Model, mixed: MixedPrecision) -> Manifest:
    layers = tuple(
        replace(layer, router_types=router_types(model, layer)) if layer.router_types else layer
        for layer in manifest.layers
    )
    nodes = tuple(Float32Node(node.place.node, node.reason) for node in mixed.nodes)
    known = {node.name for node in nodes}
    # A package that was repaired before keeps the reasons of its nodes.
    earlier = tuple(node for node in manifest.float32_nodes if node.name not in known)
    return replace(manifest, layers=layers, proof=None, float32_nodes=(*earlier, *nodes))


_PRODUCTS = ("MatMul", "Gemm", "Conv", op_names.QUERY_PROJECTION, op_names.OUTPUT_PROJECTION)


def flops_share(
    graph: ModelGraph, values: Mapping[str, InnerValue], chosen: Collection[str]
) -> float | None:
    """Return the part of the multiply-adds in products and attention cores that nodes have.

    Args:
        graph: The model's.
        values: Its inner values, for their shapes.
        chosen: First outputs of the nodes.

    Returns:
        None if nothing was counted.
    """
    # Weights are no inner values, and a product's number of terms may stand in their shape alone.
    weights = {initializer.name: tuple(initializer.dims) for initializer in graph.graph.initializer}
    shapes = {**{name: value.shape for name, value in values.items()}, **weights}
    # An attention node does two products in one, and counts by its own formula.
    attention = {layer.node: attention_flops(layer) for layer in graph.layers if layer.node}
    flops = {
        node.output[0]: attention.get(what_runs(node).name) or _product_flops(node, shapes)
        for node in graph.nodes
    }
    # Shares of what was counted: additions, norms and softmax are left out on both sides.
    total = sum(flops.values())
    return sum(flops[name] for name in chosen) / total if total else None


def _product_flops(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    made = shapes.get(node.output[0])
    if node.op_type not in _PRODUCTS or made is None:
        return 0
    first, second = (shapes.get(name, ()) for name in node.input[:2])
    # How many products are summed for one number of the result.
    if node.op_type == "Conv":
        terms = math.prod(second[1:])  # [out, in / groups, kernel...]
    elif first:
        turned = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
        terms = first[0] if node.op_type == "Gemm" and turned else first[-1]
    else:
        # [..., K] @ [K, N]: the first one's shape is not known, so K is taken from the weights.
        terms = second[-2] if len(second) > 1 else 0
    # A multiplication and an addition for each term.
    return 2 * math.prod(made) * terms
