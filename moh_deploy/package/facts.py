"""Facts that the manifest and another file of a package state alike, or the package is refused."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moh_deploy.errors import PackageError
from moh_deploy.ops.routers import form_named
from moh_deploy.package.interface import LayerInfo, marks_padding, mask_input
from moh_deploy.package.manifest import Manifest
from moh_deploy.package.vectors import VectorSet


class StatedFact(NamedTuple):
    """A statement of the manifest, and the same as another file of the package shows it."""

    name: str  # key path; of a layer, the name of its field
    said: object  # the value in the manifest
    shown: object  # the value that the other file shows
    layer: int | None = None  # number of the layer; None for a fact of the whole model


def recorded_facts(manifest: Manifest, vectors: Sequence[VectorSet]) -> Iterator[StatedFact]:
    """Yield the facts of a manifest that the recorded runs show, in agreement or not.

    Args:
        vectors: The first is of the example's sizes.
    """
    for first in vectors[:1]:
        yield StatedFact("dims", manifest.dims, {**manifest.dims, **first.sizes})
        if manifest.text_generation is not None and "logits" in first.outputs:
            *_, vocab_size = (None, *first.outputs["logits"].shape)
            key = "text_generation.vocab_size"
            yield StatedFact(key, manifest.text_generation.vocab_size, vocab_size)
    if manifest.proof is not None:
        yield StatedFact(
            "proof.sizes", list(manifest.proof.sizes), [vector_set.sizes for vector_set in vectors]
        )
    for name, (smallest, largest) in manifest.dim_ranges.items():
        for vector_set in vectors:
            size = vector_set.sizes.get(name, smallest)
            in_range = smallest <= size and (largest is None or size <= largest)
            yield StatedFact(
                f"dim_ranges.{name}", [smallest, largest], [smallest, largest] if in_range else size
            )
    for index, layer in enumerate(manifest.layers):
        for name, shown in _layer_shown(index, layer, manifest, vectors):
            yield StatedFact(name, getattr(layer, name), shown, index)


def _layer_shown(
    index: int, layer: LayerInfo, manifest: Manifest, vectors: Sequence[VectorSet]
) -> Iterator[tuple[str, object]]:
    for vector_set in vectors[:1]:
        yield "batch", vector_set.gates[index].shape[0]
        if layer.seq_len is not None:
            yield "seq_len", vector_set.gates[index].shape[1]
    is_open = [vector_set.gates[index] != 0 for vector_set in vectors]  # [B, S, H]
    # Padding counts nowhere; a mask may be of other tokens than the layer has.
    counted, valid = list(is_open), manifest.valid_tokens
    if valid is not None:
        masks = [run.inputs[mask_input(valid)] != marks_padding(valid) for run in vectors]
        both = zip(is_open, masks, strict=True)
        counted = [a[mask] for a, mask in both if mask.shape == a.shape[:2]]
    pairs = sum(item.size for item in counted)
    if layer.active_share is not None and pairs and len(counted) == len(vectors):
        share = sum(int(item.sum()) for item in counted) / pairs
        # Added up in another order, the last digits differ.
        is_same = abs(share - layer.active_share) < _LAST_DIGITS
        yield "active_share", layer.active_share if is_same else share
    if is_open and (layer.closed_heads or form_named(layer.router).is_constant):
        used = sum(item.reshape(-1, layer.num_heads).sum(0) for item in is_open)
        yield "closed_heads", tuple(np.flatnonzero(used == 0).tolist())
    if not layer.router_replaced and layer.top_k is not None:
        yield from _top_k_shown(index, layer, vectors)


_LAST_DIGITS = 1e-9


def _top_k_shown(
    index: int, layer: LayerInfo, vectors: Sequence[VectorSet]
) -> Iterator[tuple[str, object]]:
    """Yield the number of chosen heads of plain operators: margins were taken at that number."""
    margins_of = form_named(layer.router).margins
    for vector_set in vectors:
        scores = vector_set.scores[index] if vector_set.scores else None
        if scores is None:
            continue
        fitting = [
            number
            for number in range(1, scores.shape[-1] + 1)
            if np.allclose(
                np.nan_to_num(margins_of(scores, number), nan=0, posinf=np.inf),
                vector_set.margins[index],
                atol=1e-6,
            )
        ]
        yield "top_k", layer.top_k if layer.top_k in fitting else next(iter(fitting), None)


def with_shown(manifest: Manifest, facts: Iterable[StatedFact]) -> Manifest:
    """Return a manifest whose layers say what these facts show."""
    layers = list(manifest.layers)
    for fact in facts:
        if fact.layer is not None:
            shown: dict[str, Any] = {fact.name: fact.shown}
            layers[fact.layer] = replace(layers[fact.layer], **shown)
    return replace(manifest, layers=tuple(layers))


def check_facts(path: Path, facts: Iterable[StatedFact], *, shown_by: str) -> None:
    """Refuse a manifest that says something else than another file.

    Args:
        path: The manifest.
        shown_by: Name of the other file.

    Raises:
        PackageError: The first fact in which they differ, with both values.
    """
    for name, said, shown, layer in facts:
        if said != shown:
            key = name if layer is None else f"layers[{layer}].{name}"
            raise PackageError(
                f"{path}: key '{key}' says {_value_text(said)}, {shown_by} has"
                f" {_value_text(shown)}.",
                hint="Export the model again, or get the package again from where it was made.",
            )


def _value_text(value: object) -> str:
    text = "nothing" if value is None else repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


_LONGEST = 200
