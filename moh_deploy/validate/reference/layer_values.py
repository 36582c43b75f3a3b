"""The inner values of MoH layers in a run: gates, ranked scores, and fingerprints of attention.

They are inner values of model.onnx, which a session returns when it is asked to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moh_deploy.errors import ConfigError
from moh_deploy.graph import layer_reads
from moh_deploy.graph.forced_gates import forced_gates
from moh_deploy.graph.narrowing import FixedHeads
from moh_deploy.package import LayerInfo, OnnxPackage, VectorSet, fingerprint, load_without_weights
from moh_deploy.runtime.base import AS_IT_IS, FUNCTION_BODIES, Runner, Variant
from moh_deploy.runtime.input_check import check_inputs
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.runtime.variants import PackageVariants
from moh_deploy.system.npz import Array, BoolArray
from moh_deploy.validate.reference.samples import Sample
from moh_deploy.validate.reference.valid_tokens import EVERY_TOKEN, token_view

_ROUTED = "routed_logits"


@dataclass(frozen=True)
class LayerValues:
    """The names of one layer's inner values in a model, and the means to read them."""

    gates: str
    # Name of the layer's attention result, gates included; None where the graph has no such value.
    attention: str | None
    # Where its MoHRouter reads logits; None where plain operators make the gates.
    router: layer_reads.RouterLogits | None
    sources: layer_reads.LayerSources = layer_reads.NO_SOURCES  # What they are computed from

    @property
    def logits(self) -> str | None:
        """Name of what the scores are made of; None where the layer ranks nothing that is known."""
        # Scores are compared token by token, so the router has to have tokens in the order of the
        # gates.
        if self.router is None or not self.router.in_order:
            return None
        return self.router.logits.get(_ROUTED)

    @property
    def names(self) -> list[str]:
        """The inner values that a session has to return."""
        return [name for name in (self.gates, self.logits, self.attention) if name is not None]

    def scores(self, results: Mapping[str, Array], tokens: tuple[int, ...]) -> Array | None:
        """Return the scores that the router ranked, [B, S, candidates] in float32.

        Args:
            results: What the session returned.
            tokens: [B, S], as of the gates.
        """
        if self.logits is None or self.logits not in results:
            return None
        assert self.router is not None
        logits = results[self.logits]
        candidates = logits.shape[-1]
        # Not one row of logits for each token: nothing could be compared token by token.
        if logits.size != np.prod(tokens) * candidates:
            return None
        scores = self.router.form.scores(logits).astype(np.float32)
        return scores.reshape(*tokens, candidates)

    def fingerprint(self, results: Mapping[str, Array], tokens: tuple[int, ...]) -> Array | None:
        """Return the fingerprint of what the attention computed, [B, S, NUMBERS]; arguments are
        those of `scores`."""
        if self.attention is None or self.attention not in results:
            return None
        value = results[self.attention]
        if value.ndim == 4:  # [B, H, S, D], as the operator has it where its inputs are so
            value = value.transpose(0, 2, 1, 3)
        # Other axes in front than [B, S], as where attention runs over windows.
        if not value.size or value.shape[:2] != tokens:
            return None
        return fingerprint(value.reshape(*tokens, -1))


def layer_values(package: OnnxPackage) -> tuple[LayerValues, ...]:
    """Return where each layer's inner values are, in the manifest's order."""
    graph = load_without_weights(package.model_path).graph
    layers = package.manifest.layers
    found = zip(
        layers,
        layer_reads.attention_values(graph, layers),
        layer_reads.router_logits(graph, layers),
        layer_reads.layer_sources(graph, layers),
        strict=True,
    )
    return tuple(
        LayerValues(layer.gates, attention, router, sources)
        for layer, attention, router, sources in found
    )


def names_to_return(package: OnnxPackage) -> tuple[str, ...]:
    """Return the inner values that a session has to return for its layers to be compared."""
    values = layer_values(package)
    # Layers may share a value; a session is asked for each once.
    return tuple(dict.fromkeys(name for layer in values for name in layer.names))


# Record runs of a package's own function bodies as vectors: outputs, gates and margins.
#
# That is a reference for kernels and for what a runtime makes of the graph. It does not say that
# the package equals the original model.


@dataclass(frozen=True)
class ScoredRun:
    """One run of function bodies."""

    vectors: VectorSet
    # [B, S] for each layer: the token chose among scores that are known, and numbers.
    is_scored: tuple[BoolArray, ...]
    # [B, S] for each layer: it chose among scores that are known, and not all numbers.
    has_nan: tuple[BoolArray, ...]


@dataclass(frozen=True)
class Recorder:
    """Makes vectors of runs of a package."""

    package: OnnxPackage
    # A session of it, of its function bodies with optimisations off unless asked for otherwise,
    # which also returns `names_to_return(package)`.
    runner: Runner
    layers: tuple[LayerValues, ...]

    @classmethod
    def of(cls, package: OnnxPackage, variant: Variant = FUNCTION_BODIES) -> Recorder:
        """Open a package: its function bodies, or as it runs otherwise."""
        runner = open_runner(package, variant.returning(names_to_return(package)))
        return cls(package, runner, layer_values(package))

    def record(self, inputs: Mapping[str, Array]) -> VectorSet:
        """Run the function bodies.

        The margins of a layer whose scores are not known are infinite: they excuse nothing.

        Raises:
            ConfigError: The inputs do not fit the model.
            BackendError: The runtime failed.
        """
        return self.scored_run(inputs).vectors

    def scored_run(self, inputs: Mapping[str, Array]) -> ScoredRun:
        """Run the function bodies, and say which tokens have scores.

        Raises:
            ConfigError: The inputs do not fit the model.
            BackendError: The runtime failed.
        """
        package = self.package
        results = self.runner.run(inputs)
        gates = tuple(results[name] for name in package.gate_names)
        margins = [_margins(*layer, results) for layer in zip(self.layers, gates, strict=True)]
        # [B, S] of each layer: scores and fingerprints are brought to the tokens of its gates.
        shown = [(layer, gate.shape[:2]) for layer, gate in zip(self.layers, gates, strict=True)]
        vectors = VectorSet(
            sizes=check_inputs(package.manifest.inputs, inputs),
            inputs=dict(inputs),
            outputs={spec.name: results[spec.name] for spec in package.manifest.outputs},
            gates=gates,
            # A choice among NaN is a tie, margin 0; infinity, where scores are not known, stays.
            margins=tuple(np.nan_to_num(margin, nan=0.0, posinf=np.inf) for margin in margins),
            scores=tuple(layer.scores(results, tokens) for layer, tokens in shown),
            attention=tuple(layer.fingerprint(results, tokens) for layer, tokens in shown),
        )
        return ScoredRun(
            vectors,
            # Infinite margins: scores that are not known. NaN: scores that are known, and no
            # numbers.
            is_scored=tuple(np.isfinite(margin) for margin in margins),
            has_nan=tuple(np.isnan(margin) for margin in margins),
        )


def _margins(layer: LayerValues, gates: Array, results: Mapping[str, Array]) -> NDArray[np.float32]:
    """Return [B, S]: see `VectorSet.margins`; NaN where a score is."""
    tokens = gates.shape[:-1]
    # A router of plain operators shows no scores, so its choices cannot be called ties.
    logits = None if layer.logits is None else results.get(layer.logits)
    if layer.router is not None and logits is not None:
        form, top_k = layer.router.form, int(layer.router.attributes["top_k"])
        margins = form.margins(form.scores(logits), top_k)
        # One margin per [B, S] is needed; logits over windows or samples do not tell a token's
        # choice.
        if margins.size == np.prod(tokens):
            return margins.reshape(tokens)
    return np.full(tokens, np.inf, np.float32)


# Count how often, and how strongly, each head of a layer is used.


@dataclass(frozen=True)
class HeadLoads:
    """The use of each head of one layer over some tokens, padding left out."""

    tokens: int
    load: tuple[float, ...]  # Share of the tokens with an open gate, by head
    mass: tuple[float, ...]  # Mean of the gate's absolute value, closed gates counted as 0
    gate: tuple[float, ...]  # Mean of the gate itself

    @classmethod
    def of(cls, gates: Sequence[Array]) -> HeadLoads:
        """Count over gates [tokens, H]."""
        all_gates = np.concatenate(gates).astype(np.float64)
        tokens = max(1, len(all_gates))

        def mean(values: NDArray[np.float64] | NDArray[np.bool_]) -> tuple[float, ...]:
            return tuple((values.sum(axis=0) / tokens).tolist())

        return cls(len(all_gates), mean(all_gates != 0), mean(abs(all_gates)), mean(all_gates))

    def most_used(self, keep: int, by: str) -> FixedHeads:
        """Return the heads that are used most, with the constant that is nearest to their gates.

        Of heads that are alike the one with more of the other figure comes first, then the lower
        number. The mean over all tokens is the constant with the least squared distance from what
        the router gives (docs/adr/0067).

        Args:
            by: `load` or `gate`.
        """
        first, second = (self.load, self.mass) if by == "load" else (self.mass, self.load)
        order = sorted(range(len(first)), key=lambda head: (-first[head], -second[head], head))
        kept = tuple(sorted(order[:keep]))
        return FixedHeads(kept, tuple(float(np.float32(self.gate[head])) for head in kept))


def head_loads(package: OnnxPackage, samples: Sequence[Sample]) -> tuple[HeadLoads, ...]:
    """Count for each layer, by the gates that are known of samples, or else by running them.

    Raises:
        ConfigError: A sample does not fit the model.
        BackendError: The runtime failed.
    """
    manifest, names = package.manifest, tuple(dict.fromkeys(package.gate_names))
    needs_run = any(not sample.known.gates for sample in samples)
    runner = open_runner(package, AS_IT_IS.returning(names)) if needs_run else None
    by_sample = []
    for sample in samples:
        known, gates = sample.known, sample.known.gates
        if not gates:
            assert runner is not None
            found = runner.run(known.inputs)
            gates = tuple(found[name] for name in package.gate_names)
        run = VectorSet(known.sizes, known.inputs, {}, gates, ())
        view = EVERY_TOKEN if sample.valid is None else token_view(sample.valid, manifest, run)
        counted = map(view.of, package.gate_names, gates, gates)
        # Of each layer, [tokens, H]: tokens that count.
        by_sample.append([seen.reference.reshape(-1, seen.reference.shape[-1]) for seen in counted])
    return tuple(map(HeadLoads.of, zip(*by_sample, strict=True)))


# Record what a package computes with the same gates for every token, by feeding them to it.


def with_fixed_gates(package: OnnxPackage, fixed: Sequence[FixedHeads]) -> tuple[VectorSet, ...]:
    """Return the recorded runs of a package with gates fed to it in place of its routers' own.

    It runs as function bodies, unoptimised: every head is computed, with whole weights, and only
    then weighed. What a package with cut weights has to equal.

    Args:
        fixed: The heads of each layer that run, and their gates; the others get 0.

    Returns:
        Runs with the gates and the attention of what is left.

    Raises:
        ConfigError: Attention does not compute with the gates that would be fed.
        BackendError: The runtime failed.
    """
    variants = PackageVariants(package, FUNCTION_BODIES)
    why = variants.why_not_forced()
    if why is not None:
        raise ConfigError(
            f"{package.root} cannot run with gates that are given: {why}.",
            hint="`moh-deploy inspect` says which layers stay as plain operators, and why.",
        )
    layers, values = package.manifest.layers, layer_values(package)
    first = package.vectors[0].gates
    types = {layer.gates: gates.dtype for layer, gates in zip(layers, first, strict=True)}
    inner = dict.fromkeys(value.attention for value in values if value.attention is not None)
    recorded = []
    with variants.forced(types, tuple(inner)) as runner:
        for run in package.vectors:
            fed, left = {}, []
            for layer, heads, like in zip(layers, fixed, run.gates, strict=True):
                row = np.zeros(like.shape[-1], like.dtype)
                row[list(heads.kept)] = heads.gates
                # [B, S, H]: the same for every token.
                gates = np.broadcast_to(row, like.shape).copy()
                fed[forced_gates(layer.gates)] = gates
                left.append(gates[..., list(heads.kept)] if heads.is_cut else gates)
            found = runner.run({**run.inputs, **fed})
            of_layers = zip(layers, values, fixed, run.gates, strict=True)
            recorded.append(
                replace(
                    run,
                    outputs={name: found[name] for name in run.outputs},
                    gates=tuple(left),
                    # Nothing is selected, so nothing is near a tie.
                    margins=tuple(np.full(gates.shape[:2], np.inf, np.float32) for gates in left),
                    scores=(),
                    attention=tuple(_fingerprint(*layer, found) for layer in of_layers),
                )
            )
    return tuple(recorded)


def _fingerprint(
    layer: LayerInfo,
    value: LayerValues,
    fixed: FixedHeads,
    gates: Array,
    found: Mapping[str, Array],
) -> Array | None:
    """Return the fingerprint of the heads that are left, [B, S, NUMBERS]."""
    if value.attention is None:
        return None
    heads = found[value.attention]
    if fixed.is_cut:
        kept = list(fixed.kept)
        if heads.ndim == 4:  # [B, H, S, D]
            heads = heads[:, kept]
        else:
            apart = heads.reshape(*heads.shape[:-1], layer.num_heads, -1)
            heads = apart[..., kept, :].reshape(*heads.shape[:-1], -1)
    return value.fingerprint({value.attention: heads}, gates.shape[:2])
