"""Samples to compare two sides on: runs that a package recorded, or files of the user's."""

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from moh_deploy.errors import ConfigError
from moh_deploy.package import Manifest, VectorSet
from moh_deploy.package.interface import marks_padding, mask_input
from moh_deploy.system.npz import Array
from moh_deploy.validate.reference import valid_tokens as masks
from moh_deploy.validate.reference.user_vectors import read_user_vectors
from moh_deploy.validate.reference.valid_tokens import TokenView, ValidTokens


@dataclass(frozen=True)
class Sample:
    """Inputs of one run, and what is known of it."""

    # The inputs, and the outputs, gates and margins that were recorded with them: all of them for a
    # recorded run, none or some outputs for a user's file.
    known: VectorSet
    label: str  # How reports call it
    file: Path | None = None  # Where it was read; None for a recorded run
    valid: ValidTokens | None = None  # Which of its tokens count; None for all
    by_order: str = ""  # As in `UserVectors`

    @property
    def expected(self) -> Mapping[str, Array]:
        """The outputs that are known of it, by name."""
        return self.known.outputs


ALL_TOKENS = "all"
"""In place of the name of a mask: every token counts, whatever the package says."""


def named_mask(manifest: Manifest, asked: str | None) -> str | None:
    """Return the name of what says which tokens are valid; None if all are.

    Args:
        asked: What the user names, which wins; None if nothing.
    """
    if asked is None:
        return manifest.valid_tokens
    is_input = any(spec.name == asked for spec in manifest.inputs)
    return None if asked == ALL_TOKENS and not is_input else asked


def padding_place(mask: str) -> str:
    """Return in words where a mask says that tokens are padding."""
    return f"where input '{mask_input(mask)}' is {int(marks_padding(mask))}"


def only_padding(names: Sequence[str]) -> str:
    """Return the next step where all that differs lies in padding by a mask; empty without one."""
    if not names:
        return ""
    number = int(marks_padding(names[0]))
    return (
        f"If {number} means padding there, --valid-tokens {shlex.quote(names[0])} leaves these"
        " tokens out of every comparison. "
    )


def recorded_samples(vectors: Sequence[VectorSet], count: int | None = None) -> tuple[Sample, ...]:
    """Return recorded runs, called by their numbers and sizes.

    Args:
        count: How many of them, from the first on; None for all.

    Raises:
        ConfigError: There are not so many.
    """
    # Taking fewer than were asked for would pass for a thorough check.
    if count is not None and count > len(vectors):
        raise ConfigError(
            f"vectors is {count}, but there are {len(vectors)} recorded runs to compare with.",
            hint="Leave it out to compare with all of them.",
        )
    return tuple(
        Sample(vector_set, label(str(i), vector_set.sizes))
        for i, vector_set in enumerate(vectors[:count])
    )


def with_valid_tokens(
    samples: Sequence[Sample], manifest: Manifest, tokens: str | None
) -> tuple[Sample, ...]:
    """Return recorded runs with the masks that one of their inputs is.

    Args:
        tokens: The input that says which tokens are valid; None: all are.

    Raises:
        ConfigError: There is no such input, or it is no mask.
    """
    found = []
    for sample in samples:
        where = f"recorded run {sample.label}"
        valid = valid_tokens_of(sample.known, {}, where, manifest, tokens)
        found.append(replace(sample, valid=valid))
    return tuple(found)


def read_samples(
    paths: Sequence[Path], manifest: Manifest, tokens: str | None = None
) -> tuple[Sample, ...]:
    """Read npz files, and those in directories, in the order of their names.

    Args:
        tokens: The input, or member of every file, that says which tokens are valid; None: all are.

    Raises:
        ConfigError: A file cannot be read or does not fit the model, or a directory has none.
    """
    found, files = [], npz_files(paths)
    for file, name in zip(files, short_names(files), strict=True):
        user = read_user_vectors(file, manifest, () if tokens is None else (mask_input(tokens),))
        # A file has no gates and margins: a reference adds them.
        known = VectorSet(user.sizes, user.inputs, user.expected, (), ())
        valid = valid_tokens_of(known, user.others, str(file), manifest, tokens)
        found.append(Sample(known, label(name, user.sizes), file, valid, user.by_order))
    return tuple(found)


def label(name: str, sizes: Mapping[str, int]) -> str:
    """Return a run's label in reports: `0 (batch=2)`."""
    text = ", ".join(f"{dim}={size}" for dim, size in sizes.items())
    return f"{name} ({text})" if text else name


def npz_files(paths: Sequence[Path]) -> list[Path]:
    """Return the files that paths name, those in directories in the order of their names.

    Raises:
        ConfigError: A directory has none, or a file is named twice.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        files = sorted(path.glob("*.npz")) if os.path.isdir(path) else [path]
        if not files:
            raise ConfigError(f"{path} has no npz files, so there is nothing to run.")
        for file in files:
            # A directory and a file in it, or a link, name the same samples.
            if file.resolve() in found:
                raise ConfigError(
                    f"inputs name {file} twice: its samples would count twice.",
                    hint="Name each file once, or its directory alone.",
                )
            found[file.resolve()] = file
    return list(found.values())


def short_names(files: Sequence[Path]) -> list[str]:
    """Return file names, or whole paths where names are not enough to tell files apart."""
    # Files of one name in two directories could not be told apart in a report.
    names = [file.name for file in files]
    return names if len(set(names)) == len(names) else [str(file) for file in files]


def valid_tokens_of(
    known: VectorSet,
    others: Mapping[str, Array],
    where: str,
    manifest: Manifest,
    tokens: str | None,
) -> ValidTokens | None:
    """Find the valid tokens of a run; None for all.

    Args:
        others: What stands beside its inputs in a file.
        where: Where it is from, for errors.
        tokens: The input, or one of the others, that says so; None: all are.

    Raises:
        ConfigError: There is none of that name, or it is no mask.
    """
    if tokens is None:
        return None
    # The names of the mask's axes in the model tell which axes of outputs are tokens.
    shapes = {spec.name: spec.shape for spec in manifest.inputs}
    # An input of that name wins: it is what the model itself sees.
    name = mask_input(tokens)
    mask = known.inputs.get(name, others.get(name))
    if mask is None:
        raise ConfigError(
            f"valid tokens are named '{name}', which {where} does not hold.",
            hint=f"The inputs are {', '.join(shapes)}; files of inputs may hold another member.",
        )
    found = masks.valid_tokens(tokens, mask, shapes.get(name), where=where)
    is_own = tokens == manifest.valid_tokens
    return replace(found, new_tokens=manifest.new_tokens) if is_own else found


def own_masks(
    manifest: Manifest, vectors: Sequence[VectorSet], labels: Sequence[str]
) -> list[ValidTokens]:
    """Return which tokens of each run are valid as the package says; nothing if all are.

    Raises:
        ConfigError: The input that says so holds something else than a mask.
    """
    tokens = manifest.valid_tokens
    pairs = zip(vectors, labels, strict=True)
    found = [valid_tokens_of(run, {}, f"run {name}", manifest, tokens) for run, name in pairs]
    return [mask for mask in found if mask is not None]


def own_view(manifest: Manifest, run: VectorSet, name: str) -> TokenView:
    """Return what of a run is compared as the package says."""
    (mask,) = own_masks(manifest, [run], [name]) or (None,)
    return masks.EVERY_TOKEN if mask is None else masks.token_view(mask, manifest, run)
