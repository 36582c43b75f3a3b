"""Search inputs, cut into samples, for the tokens whose choice of heads is least clear."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

import numpy as np

from moh_deploy import package as pkg
from moh_deploy.errors import ConfigError, ExportError
from moh_deploy.system.npz import BoolArray
from moh_deploy.validate.reference.input_sets import batch_dim, picked
from moh_deploy.validate.reference.layer_values import Recorder
from moh_deploy.validate.reference.reference import Reference
from moh_deploy.validate.reference.samples import Sample, check_ranges, valid_tokens_of
from moh_deploy.validate.reference.valid_tokens import ValidTokens

TOKENS_PER_LAYER = 3
"""How many tokens of a sample are named, for each layer."""


@dataclass(frozen=True)
class Mined:
    """The result of a search for choices near a tie."""

    searched: int  # how many samples were run
    tokens: int  # how many choices of heads were looked at, of all layers
    # The samples with the least clear choices, with their names; the corpus has room for them.
    samples: tuple[pkg.CorpusSample, ...]
    names: tuple[str, ...]  # name of each of them: the file, and which sample of it
    too_large: int  # how many samples were left out because the corpus has no room for them
    unknown: tuple[str, ...]  # paths of layers whose margins are not known, or which choose nothing
    nan_choices: int = 0  # how many choices were not looked at because their scores are NaN


def mine(
    recorder: Recorder, samples: Iterable[Sample], *, valid_tokens: str | None = None
) -> Mined:
    """Run the samples by function bodies and return those with the smallest margins.

    Every layer has its turn: the sample with its least clear choice, then the next.

    Args:
        recorder: The function bodies.
        samples: What to search.
        valid_tokens: The input that is 0 for padding, which is not searched.

    Raises:
        BackendError: The runtime failed.
    """
    package = recorder.package
    searched = tokens = nan_choices = 0
    paths = [layer.path for layer in package.manifest.layers]
    # Layers with any scores at all; the others are named in the report as not searched.
    with_scores: set[int] = set()
    best: list[tuple[str, pkg.CorpusSample]] = []
    for sample in samples:
        run = recorder.scored_run(sample.known.inputs)
        # Padding often ties, and its choice is unread.
        known = valid_tokens_of(sample.known, {}, sample.label, package.manifest, valid_tokens)
        searchable = [_searchable(scored, known) for scored in run.is_scored]  # [B, S] each
        clear = [int(array.sum()) for array in searchable]
        searched, tokens = searched + 1, tokens + sum(clear)
        nan_choices += sum(int(_searchable(array, known).sum()) for array in run.has_nan)
        with_scores.update(index for index, count in enumerate(clear) if count)
        mined = _least_clear(run.vectors, searchable)
        if mined:
            # Only the best so far are kept: inputs may be many, and each has all its outputs.
            best = _best([*best, (sample.label, pkg.CorpusSample(run.vectors, mined))], len(paths))
    unknown = tuple(path for index, path in enumerate(paths) if index not in with_scores)
    return _with_samples(Mined(searched, tokens, (), (), 0, unknown, nan_choices), best)


def grown(
    kept: Sequence[pkg.CorpusSample], found: Sequence[pkg.CorpusSample]
) -> tuple[pkg.CorpusSample, ...]:
    """Return the least clear samples of a corpus and of what was found, each once.

    What a corpus holds stays as it was recorded, unless the original recorded it now.
    """
    # False sorts first: of equal samples the one that the original recorded is kept.
    both = sorted((*kept, *found), key=lambda item: item.reference != pkg.ORIGINAL)
    # Layers are known by number only, from the tokens that were mined in them.
    layers = 1 + max((token.layer for sample in both for token in sample.mined), default=-1)
    ranked = _best([("", sample) for sample in both], layers)
    return pkg.bounded([sample for _, sample in ranked])


def recorded_by(original: Reference, package: pkg.OnnxPackage, mined: Mined) -> Mined:
    """Return the samples found, with the values that the original model computes on them.

    Raises:
        MoHDeployError: The original cannot run, or not on these.
    """
    runs = zip(mined.names, mined.samples, strict=True)
    samples = [Sample(sample.vectors, name) for name, sample in runs]
    answers = original.answers(package, samples)
    for number, why in answers.without_gates.items():
        raise ExportError(
            f"{original.name}: {mined.names[number]} cannot be recorded. {why}",
            hint="A corpus needs gates: give inputs of other sizes.",
        )
    pairs = zip(mined.samples, answers.vectors, strict=True)
    recorded = [
        replace(sample, vectors=vectors, reference=pkg.ORIGINAL) for sample, vectors in pairs
    ]
    return _with_samples(mined, list(zip(mined.names, recorded, strict=True)))


def _with_samples(mined: Mined, found: Sequence[tuple[str, pkg.CorpusSample]]) -> Mined:
    """Put in the samples that a corpus has room for, and count the others."""
    kept = pkg.bounded(sample for _, sample in found)
    # `bounded` drops and does not rename: samples are found again by their content.
    names = {sample.digest(): name for name, sample in found}
    return replace(
        mined,
        samples=kept,
        names=tuple(names[sample.digest()] for sample in kept),
        too_large=mined.too_large + len(found) - len(kept),
    )


def _searchable(is_scored: BoolArray, valid: ValidTokens | None) -> BoolArray:
    """Return [B, S]: tokens with scores that are no padding, as far as the mask is of the same."""
    if valid is None or valid.mask.shape != is_scored.shape:
        return is_scored
    return np.asarray(is_scored & valid.mask, bool)


def _least_clear(
    vectors: pkg.VectorSet, searchable: Sequence[BoolArray]
) -> tuple[pkg.MinedToken, ...]:
    found: list[pkg.MinedToken] = []
    for layer, (margins, there) in enumerate(zip(vectors.margins, searchable, strict=True)):
        # Places that are not searched have no margin, so they come last and are dropped.
        known = np.where(there, margins, np.inf)
        order = np.argsort(known, axis=None, kind="stable")[:TOKENS_PER_LAYER]
        places = zip(*np.unravel_index(order, known.shape), strict=True)
        smallest = [(int(b), int(s)) for b, s in places if np.isfinite(known[b, s])]
        found += [pkg.MinedToken(layer, place, float(known[place])) for place in smallest]
    return tuple(sorted(found, key=lambda item: item.margin))


def _best(
    samples: Sequence[tuple[str, pkg.CorpusSample]], layers: int
) -> list[tuple[str, pkg.CorpusSample]]:
    """Rank by turns: for each layer its least clear sample, then its next one. Each once."""
    # Reversed twice: of equal samples the first one stays, in the order given.
    distinct = {sample.digest(): (name, sample) for name, sample in reversed(samples)}
    known = [(digest, sample) for digest, (_, sample) in reversed(distinct.items())]
    by_layer: list[list[tuple[float, int, str]]] = [[] for _ in range(layers)]
    for place, (digest, sample) in enumerate(known):
        margins: dict[int, float] = {}
        for token in sample.mined:
            margins[token.layer] = min(token.margin, margins.get(token.layer, np.inf))
        for layer, margin in margins.items():
            # `place` settles equal margins, so that the order does not hang on digests.
            by_layer[layer].append((margin, place, digest))
    # Taking turns: a layer whose margins are all small must not crowd out the others.
    taken = [found for turn in zip_longest(*map(sorted, by_layer)) for found in turn if found]
    order = dict.fromkeys(digest for _, _, digest in taken)
    return [distinct[digest] for digest in list(order)[: pkg.MOST_SAMPLES]]


def cut_into_samples(manifest: pkg.Manifest, files: Sequence[Sample]) -> Iterator[Sample]:
    """Yield each file's inputs, cut along the dimension that counts samples if there is one.

    `images.npz[3]` is the fourth of a file.
    """
    dim = batch_dim(manifest)
    axes = [axis for spec in manifest.inputs for axis in spec.shape if isinstance(axis, str)]
    # Axes such as `2*batch` cannot be cut; a trace may be good for batches of two and more only.
    if (
        dim is None
        or any(axis != dim and dim in axis for axis in axes)
        or not _takes_one(manifest, dim)
    ):
        yield from files
        return
    for file in files:
        name = file.label if file.file is None else file.file.name
        for index in range(file.known.sizes[dim]):
            inputs = picked(manifest.inputs, file.known.inputs, dim, [index])
            sizes = {**file.known.sizes, dim: 1}
            # Expected outputs go: the corpus has what function bodies or the original compute.
            known = replace(file.known, sizes=sizes, inputs=inputs, outputs={})
            yield Sample(known, f"{name}[{index}]", file.file)


def _takes_one(manifest: pkg.Manifest, dim: str) -> bool:
    try:
        check_ranges({dim: 1}, manifest)
    except ConfigError:
        return False
    return True
