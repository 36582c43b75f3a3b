"""Run every arm once before anything takes minutes: what cannot run is refused by its name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack

from moh_deploy.decision.arm import Arm, OpenedArm, open_arms, shapes_of
from moh_deploy.errors import ConfigError
from moh_deploy.package import Manifest
from moh_deploy.system.npz import Array
from moh_deploy.validate.accuracy.labelled_runs import LabelledRun
from moh_deploy.validate.input_sets import InputSet


def first_inputs(
    timed: Sequence[InputSet], batches: Sequence[LabelledRun]
) -> Sequence[Mapping[str, Array]]:
    """Return inputs of every kind that arms will be given."""
    # The last batch may be of fewer samples than the others.
    runs = (*batches[:1], *batches[1:][-1:])
    return [input_set.inputs for input_set in timed] + [run.batch.inputs for run in runs]


def try_arms(arms: Sequence[Arm], base: Manifest, given: Iterable[Mapping[str, Array]]) -> None:
    """Open arms, run each once on all inputs, and close them again.

    Raises:
        MoHDeployError: One cannot be opened or run, or returns something else than the first.
    """
    with ExitStack() as stack:
        try_out(open_arms(arms, base, stack), given)


def try_out(arms: Mapping[str, OpenedArm], given: Iterable[Mapping[str, Array]]) -> None:
    """Run open arms once on all inputs.

    Raises:
        MoHDeployError: One cannot run them, or returns something else than the first.
    """
    for inputs in given:
        (first, expected), *others = (
            (name, shapes_of(arm.outputs(inputs))) for name, arm in arms.items()
        )
        for name, got in others:
            for output in got.keys() & expected.keys():
                if got[output] != expected[output]:
                    raise ConfigError(
                        f"arm '{name}' returns output '{output}' of {list(got[output])}, and"
                        f" arm '{first}' of {list(expected[output])}: they do not do the same."
                    )
