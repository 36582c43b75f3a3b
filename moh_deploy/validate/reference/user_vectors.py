"""Read a user's npz file: inputs, and expected outputs if it holds any."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from moh_deploy.config.dims import limits_text
from moh_deploy.errors import ConfigError
from moh_deploy.package import Manifest
from moh_deploy.runtime.base import ModelInterface
from moh_deploy.runtime.input_check import check_inputs
from moh_deploy.system.npz import Array, read_npz
from moh_deploy.system.suggest import nearly_named, shortened


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
            f"members {_listed(inputs)} are none of the model's inputs, and {len(inputs)} are not"
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
        f"{model}: its input '{unknown}' is none of the inputs that are compared on,"
        f" {_shortened(ours)}, and its inputs {_shortened(theirs)} cannot be taken by position.",
        hint="Inputs are matched by name, or, if no name is the same, by position.",
    )


def match_outputs(theirs: Sequence[str], ours: Sequence[str], model: str) -> dict[str, str]:
    """Return for each of our outputs that they have too its name there.

    Raises:
        ConfigError: There is none.
    """
    # An output that only one side has is reported elsewhere; one in common is enough to compare.
    common = [name for name in ours if name in theirs]
    if common:
        return {name: name for name in common}
    if len(theirs) == len(ours):
        return dict(zip(ours, theirs, strict=True))
    raise ConfigError(
        f"{model}: its outputs {_shortened(theirs)} are none of {_shortened(ours)}, and cannot be"
        " taken by position: there would be nothing to compare.",
        hint="Outputs are matched by name, or, if no name is the same, by position.",
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _shortened(names: Sequence[str]) -> str:
    return shortened(f"'{name}'" for name in names) or "(none)"
