"""Samples to compare two sides on: runs that a package recorded, or files of the user's."""

import os
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from moh_deploy.config.dims import limits_text
from moh_deploy.errors import ConfigError
from moh_deploy.package import Manifest, VectorSet
from moh_deploy.package.interface import marks_padding, mask_input
from moh_deploy.runtime.base import ModelInterface
from moh_deploy.runtime.input_check import check_inputs
from moh_deploy.system.npz import Array, read_npz
from moh_deploy.system.suggest import nearly_named, shortened
from moh_deploy.validate.reference import valid_tokens as masks
from moh_deploy.validate.reference.valid_tokens import TokenView, ValidTokens

# Read a user's npz file: inputs, and expected outputs if it holds any.


@dataclass(frozen=True)
class UserVectors:
    """The arrays of a user's file."""

    sizes: dict[str, int]  # Dimension sizes of the inputs
    inputs: dict[str, Array]  # Input name to array, for every input of the model
    expected: dict[str, Array]  # Output name to array, for the outputs the file holds
    # What was asked for besides, by name, as far as the file holds it.
    others: dict[str, Array] = field(default_factory=dict)
    by_order: str = ""  # What was taken in its order, as a sentence; empty where names tell


def read_user_vectors(
    path: Path, manifest: ModelInterface, others: Collection[str] = ()
) -> UserVectors:
    """Read inputs by name, or by position if no member is named like one.

    Members named like outputs are expectations.

    Args:
        others: Names of members that are neither.

    Raises:
        ConfigError: The file cannot be read, or what it holds does not fit the model's inputs.
    """
    members = read_npz(path, error=ConfigError)
    try:
        found = split_members(members, manifest, others)
        sizes = check_inputs(manifest.inputs, found.inputs)
        if isinstance(manifest, Manifest):  # An engine has profiles, and checks them itself.
            check_ranges(sizes, manifest)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}", hint=error.hint) from error
    return replace(found, sizes=sizes, by_order=found.by_order and f"{path}: {found.by_order}")


def split_members(
    members: Mapping[str, Array], manifest: ModelInterface, others: Collection[str] = ()
) -> UserVectors:
    """Return inputs, by name or by position, and expected outputs; sizes are not looked at.

    Raises:
        ConfigError: No member is named like an input, and they are not as many, or a name is nearly
            that of one.
    """
    input_names = [spec.name for spec in manifest.inputs]
    # Taken out first: they would else count as inputs when these are matched by position.
    besides = {k: v for k, v in members.items() if k in others and k not in input_names}
    # A name that is both, as of a value passed through, is read as the input.
    output_names = {spec.name for spec in manifest.outputs} - {*input_names, *besides}
    expected = {name: array for name, array in members.items() if name in output_names}
    inputs = {k: v for k, v in members.items() if k not in {*output_names, *besides}}
    # One known name is enough for matching by name: the rest is then reported as missing or
    # unknown.
    if not inputs or inputs.keys() & set(input_names):
        return UserVectors({}, inputs, expected, besides)
    if len(inputs) != len(input_names):
        raise ConfigError(
            f"members {_listed(inputs)} are not inputs of the model, and {len(inputs)} are not"
            f" enough or too many to be taken by position: expected {_listed(input_names)}."
        )
    misspelt = nearly_named(inputs, input_names)
    if misspelt is not None:
        raise ConfigError(
            f"there is no input '{misspelt[0]}': the model has {_listed(input_names)}.",
            hint=f"{misspelt[1]} Members are called as the inputs; or all"
            " by other names, in the order of the inputs.",
        )
    matched = dict(zip(input_names, inputs, strict=True))
    pairs = ", ".join(f"'{name}' is '{member}'" for name, member in matched.items())
    by_name = {name: inputs[member] for name, member in matched.items()}
    by_order = f"no member is called as an input, so order counts: {pairs}"
    return UserVectors({}, by_name, expected, besides, by_order)


def check_ranges(sizes: Mapping[str, int], manifest: Manifest) -> None:
    """Refuse sizes for which the traced model is not the original one.

    Raises:
        ConfigError: Naming the dimension and its limits.
    """
    # First what says which table it is.
    for dim_sum in manifest.dim_sums:
        total = sum(sizes.get(name, 0) for name in dim_sum.dims)
        if total > dim_sum.most:
            table = "" if dim_sum.table is None else f": table '{dim_sum.table}' has no more rows"
            raise ConfigError(
                f"{' + '.join(dim_sum.dims)} is {total}; the model was traced for {dim_sum.most}"
                f" at most{table}.",
                hint="A table of positions limits a cache and new tokens together: give fewer of"
                " them.",
            )
    # Tracing fixed which branch the model's code takes: beyond the limits it would take the other.
    for name, (smallest, largest) in manifest.dim_ranges.items():
        size = sizes.get(name, smallest)
        if size < smallest or (largest is not None and size > largest):
            raise ConfigError(
                f"dimension '{name}' is {size}; the model was traced for"
                f" {limits_text((smallest, largest))}.",
                hint="`export` says what limits it. Where that is a branch of the model's code,"
                " export it again with an example (of size 2 or more) on that side of the limit.",
            )


# Match inputs and outputs of two models: by name, or else by position.


def match_inputs(theirs: Sequence[str], ours: Sequence[str], model: str) -> dict[str, str]:
    """Return for each of their inputs the one of ours that is fed to it.

    Raises:
        ConfigError: `model` has an input that we have no name for, nor a place.
    """
    # Fewer inputs than ours are fine: the other model may not need a mask, say.
    if set(theirs) <= set(ours):
        return {name: name for name in theirs}
    # By position only if no name is shared: a partial match by name with the rest by position would
    # feed something wrong without a word.
    if not set(theirs) & set(ours) and len(theirs) == len(ours):
        return dict(zip(theirs, ours, strict=True))
    unknown = next(name for name in theirs if name not in ours)
    raise ConfigError(
        f"{model}: its input '{unknown}' is not among the compared inputs,"
        f" {_shortened(ours)}, and its inputs {_shortened(theirs)} cannot be taken by position.",
        hint="Inputs are matched by name, or, if no name is the same, by position.",
    )


def match_outputs(theirs: Sequence[str], ours: Sequence[str], model: str) -> dict[str, str]:
    """Return for each of our outputs that they have too its name there.

    Raises:
        ConfigError: It is missing.
    """
    # An output that only one side has is reported elsewhere; one in common is enough to compare.
    common = [name for name in ours if name in theirs]
    if common:
        return {name: name for name in common}
    if len(theirs) == len(ours):
        return dict(zip(ours, theirs, strict=True))
    raise ConfigError(
        f"{model}: its outputs {_shortened(theirs)} are not among {_shortened(ours)}, and cannot be"
        " taken by position: there would be nothing to compare.",
        hint="Outputs are matched by name, or, if no name is the same, by position.",
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _shortened(names: Sequence[str]) -> str:
    return shortened(f"'{name}'" for name in names) or "(none)"


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
        ConfigError: A file cannot be read or does not fit the model, or a directory is empty.
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
        ConfigError: A directory is empty, or a file is named twice.
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
        ConfigError: That name is unknown, or it is no mask.
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
