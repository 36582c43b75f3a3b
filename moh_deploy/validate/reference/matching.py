"""Match inputs and outputs of two models: by name, or else by position."""

from __future__ import annotations

from collections.abc import Sequence

from moh_deploy.errors import ConfigError
from moh_deploy.system.suggest import shortened


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
        f" {_listed(ours)}, and its inputs {_listed(theirs)} cannot be taken by position.",
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
        f"{model}: its outputs {_listed(theirs)} are none of {_listed(ours)}, and cannot be taken"
        " by position: there would be nothing to compare.",
        hint="Outputs are matched by name, or, if no name is the same, by position.",
    )


def _listed(names: Sequence[str]) -> str:
    return shortened(f"'{name}'" for name in names) or "(none)"
