"""At which sizes of the dynamic dimensions the model is tried besides the example's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

from moh_deploy.errors import BackendError, ConfigError, ExportError
from moh_deploy.frontend.inputs.examples import example_sizes, resize_inputs
from moh_deploy.frontend.inputs.padding import TURNS, Side, with_padding
from moh_deploy.frontend.load.model import ModelInput

Run = Callable[[Sequence[torch.Tensor]], list[torch.Tensor]]
SizeRun = tuple[tuple[ModelInput, ...], list[torch.Tensor]]
"""The inputs of a run of the original model, and its outputs."""


def other_runs(
    inputs: Sequence[ModelInput], run: Run, *, thorough: bool = True
) -> Iterator[SizeRun]:
    """Run the original model at other sizes of all dimensions: changed ones, and 1 where it can.

    Not every size is legal (images in whole patches, tables of positions): the original model
    decides. Where no change of all dimensions together is legal, each one is changed alone.

    Args:
        run: Runs the original model.
        thorough: Try both. For a model that takes long, size 1 alone says that sizes are dynamic.

    Raises:
        ExportError: If a dimension can be changed to no other size.
    """
    example = example_sizes(inputs)
    if not example:
        return
    if thorough:
        yield from changed_runs(inputs, run, example)
    ones = run_at(inputs, run, dict.fromkeys(example, 1))
    if not isinstance(ones, Exception):
        yield ones
    elif not thorough:
        yield from changed_runs(inputs, run, example)


def changed_runs(
    inputs: Sequence[ModelInput], run: Run, example: Mapping[str, int]
) -> Iterator[SizeRun]:
    """Run the original model at changed sizes of all dimensions together, or of each alone."""
    together = [{name: how(size) for name, size in example.items()} for how in _CHANGES]
    try:
        yield _first_that_runs(inputs, run, together)
    except ExportError:
        for name, size in example.items():
            alone = [{**example, name: how(size)} for how in _CHANGES]
            yield _first_that_runs(inputs, run, alone)


_CHANGES: tuple[Callable[[int], int], ...] = (
    lambda size: size + 1,
    lambda size: max(size - 1, 1),
    lambda size: size * 2,
    lambda size: max(size // 2, 1),
    lambda size: size + 2,
    lambda size: size * 3,
)


def _first_that_runs(
    inputs: Sequence[ModelInput], run: Run, candidates: Sequence[Mapping[str, int]]
) -> SizeRun:
    failures: list[str] = []
    for sizes in candidates:
        result = run_at(inputs, run, sizes)
        if not isinstance(result, Exception):
            return result
        at = ", ".join(f"{name}={size}" for name, size in sizes.items())
        failures.append(
            f"{at}: {str(result).splitlines()[0] if str(result) else type(result).__name__}"
        )
    raise ExportError(
        "the model was declared dynamic, but the original runs at no other size than the example's;"
        f" tried {'; '.join(failures)[:600]}.",
        hint="Leave the axis out of --dynamic if the model has one size.",
    )


_NOT_AT_THIS_SIZE = (
    BackendError,
    ConfigError,
    RuntimeError,
    AssertionError,
    IndexError,
    ValueError,
    TypeError,
)


def run_at(inputs: Sequence[ModelInput], run: Run, sizes: Mapping[str, int]) -> SizeRun | Exception:
    """Run the original model at given sizes; return what it raises where it does not take them.

    Where it is known which input says which tokens are valid, there is padding at these sizes: on
    both sides, or where the model does not take that, on the right, or as in the example.
    """
    try:
        resized = resize_inputs(inputs, sizes)
    except ConfigError as error:
        return error
    if not any(item.says_valid for item in inputs):
        return _try_run(resized, run)
    return (
        run_padded(resized, run, *TURNS)
        or run_padded(resized, run, "right", None)
        or _try_run(resized, run)
    )


def run_padded(inputs: Sequence[ModelInput], run: Run, *sides: Side | None) -> SizeRun | None:
    """Run the original model with padding; None where it does not take that.

    Args:
        sides: Where the samples are padded, by turns.
    """
    found = _try_run(with_padding(inputs, sides), run)
    return None if isinstance(found, Exception) or _is_nan(*found) else found


def _try_run(inputs: tuple[ModelInput, ...], run: Run) -> SizeRun | Exception:
    """Run the original model; return what it raises where it does not take the inputs."""
    try:
        return inputs, run([item.value for item in inputs])
    except _NOT_AT_THIS_SIZE as error:
        return error


def _is_nan(inputs: Sequence[ModelInput], outputs: Sequence[torch.Tensor]) -> bool:
    """Tell whether padding makes valid tokens NaN: then the model does not take it there."""
    (mask,) = (item.value != 0 for item in inputs if item.says_valid)
    for output in outputs:
        if output.shape[:2] == mask.shape:
            output = output[mask]
        elif output.shape[:2] == mask.T.shape:
            output = output[mask.T]
        # Where its tokens are is not certain: any NaN counts.
        if bool(output.isnan().any()):
            return True
    return False
