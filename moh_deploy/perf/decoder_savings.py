"""What skipping heads can save a language model: of a prompt's work, and of what a step reads.

A prompt is multiplied: what counts are multiply-adds. A step of one token is read: every weight
once, and the cache. Keys of a group of query heads are read if one of these is open, so that
grouped queries save little of the cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from moh_deploy.graph.flops import attention_flops, projection_flops
from moh_deploy.graph.layer_nodes import LayerNodes
from moh_deploy.ops.cases import numpy_dtype
from moh_deploy.package import Manifest
from moh_deploy.perf.cost_model.layer_shape import LayerShape
from moh_deploy.perf.cost_model.prediction import shape_of

_LENGTHS = (512, 8192)
# Of a weight, by the package's precision; in 4 bits 32 share a scale in float32.
_WEIGHT_BYTES = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2, "int8": 1, "int4": 0.625}


@dataclass(frozen=True)
class DecoderSavings:
    """The most that skipping heads can save at a length, for one sequence.

    Attributes:
        length: Tokens of the prompt, or in the cache.
        prompt_share: Of the multiply-adds of such a prompt.
        step_share: Of the bytes that a step reads behind so many tokens.
        cache_share: Of the cache's part of these bytes.
    """

    length: int
    prompt_share: float
    step_share: float
    cache_share: float


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
    shapes = [shape_of(*pair) for pair in layers]
    known = [shape for shape in shapes if shape is not None]
    if about is None or not manifest.total_flops or not tokens or len(known) != len(layers):
        return ()
    cores = sum(attention_flops(layer) or 0 for layer, _ in layers)
    others = (manifest.total_flops - cores) / tokens  # of a token, whatever stands before it
    projections = [(projection_flops(*pair) or 0) / tokens for pair in layers]
    weight = _WEIGHT_BYTES[manifest.precision]
    cached = _cache_bytes(manifest)
    lengths = {min(length, about.context_length or length) for length in _LENGTHS}
    return tuple(
        _at(length, known, projections, others, weight_bytes, weight, cached)
        for length in sorted(lengths)
        if known
    )


def _cache_bytes(manifest: Manifest) -> int:
    """Return the bytes of a number in the cache: that of a package in few bits is in float32."""
    cache = next(
        (info for info in manifest.inputs if info.name.startswith("past_key_values.")), None
    )
    return numpy_dtype("float32" if cache is None else cache.dtype).itemsize


def _at(
    length: int,
    shapes: Sequence[LayerShape],
    projections: Sequence[float],
    others: float,
    weight_bytes: int,
    weight: float,
    cached: int,
) -> DecoderSavings:
    # Two products of scores and values, a multiplication and an addition each.
    cores = [4 * shape.width * length**2 for shape in shapes]
    closed = [1 - shape.active_share for shape in shapes]
    skipped = sum(
        share * (core + projected * length)
        for share, core, projected in zip(closed, cores, projections, strict=True)
    )
    steps = [replace(shape, batch=1, seq_len=1, kv_len=length) for shape in shapes]
    caches = [2 * step.num_kv_heads * step.head_dim * length * cached for step in steps]
    idle = sum((1 - step.read_kv_share) * cache for step, cache in zip(steps, caches, strict=True))
    weights = sum(
        (1 - step.used_head_share)
        * step.width
        * ((step.query_features or 0) + (step.output_features or 0))
        * weight
        for step in steps
    )
    return DecoderSavings(
        length,
        prompt_share=skipped / (others * length + sum(cores)),
        step_share=(idle + weights) / (weight_bytes + sum(caches)),
        cache_share=idle / sum(caches),
    )


def savings_lines(found: Sequence[DecoderSavings]) -> Iterator[str]:
    """Say it."""
    for savings in found:
        yield (
            f"at {savings.length} tokens skipping heads saves at most"
            f" {100 * savings.prompt_share:.1f} % of a prompt's multiply-adds,"
            f" and {100 * savings.step_share:.1f} % of what a step reads"
            f" ({100 * savings.cache_share:.1f} % of the cache), routing being even"
        )
