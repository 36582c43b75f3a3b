"""At which sizes of the dynamic dimensions the model is tried besides the example's."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

import torch
from torch.export import Dim

from moh_deploy.config.dims import DimExpr
from moh_deploy.errors import ConfigError, ExportError
from moh_deploy.frontend.fx.arrays import to_torch
from moh_deploy.frontend.inputs import padding
from moh_deploy.frontend.load.model import ModelInput, example_sizes

# The inputs of a model at other sizes of its dynamic dimensions.

# Above that, integers are no tokens but images, and to look at each one takes long.
_MOST_IDS = 1 << 17


def resize_inputs(
    inputs: Sequence[ModelInput], sizes: Mapping[str, int], *, new_ids: bool = True
) -> tuple[ModelInput, ...]:
    """Return the same inputs at other dimension sizes.

    Each dynamic axis is cropped, or extended by starting again at its first entry, so that the
    values stay those of the example: ids stay legal, masks stay masks. What is repeated differs a
    little: where a model ranks tokens, equal ones are a tie, which each runtime breaks in its own
    way. Numbers that are not whole become smaller, by up to a quarter, and ids others between the
    smallest and the largest. Dimensions that `sizes` leaves out keep their size.

    Args:
        sizes: Dimension name to its new size.
        new_ids: Whether ids may become others. A model may need those of the example: so many
            places of an image in a text.

    Raises:
        ConfigError: A name is no dimension of the inputs, or an axis would become smaller than 0.
    """
    known = example_sizes(inputs)
    for name in sizes.keys() - known.keys():
        raise ConfigError(
            f"no input has a dimension '{name}'; there are: {', '.join(known) or 'none'}."
        )
    return tuple(_resized(item, {**known, **sizes}, new_ids) for item in inputs)


def _resized(item: ModelInput, sizes: Mapping[str, int], new_ids: bool) -> ModelInput:
    value = item.value
    for axis, expr in item.parsed_dims.items():
        size = expr.evaluate(sizes)
        if size < 0:
            raise ConfigError(
                f"axis {axis} of input '{item.name}' ('{expr}') would have size {size} with"
                f" {expr.name}={sizes[expr.name]}; a size must be at least 0."
            )
        known = value.shape[axis]
        value = value.index_select(axis, torch.arange(size) % known)
        if size > known and value.is_floating_point():
            generator = torch.Generator().manual_seed(axis)
            factors = 1 - torch.rand(value.shape, generator=generator) / 4
            factors.narrow(axis, 0, known).fill_(1)
            smaller = value * factors.to(value.dtype)
            value = torch.where(value == value.round(), value, smaller)
        elif size > known and new_ids and not item.says_valid:
            value = _with_other_ids(value, axis, known)
    return replace(item, value=value)


def _with_other_ids(repeated: torch.Tensor, axis: int, known: int) -> torch.Tensor:
    """Return the same with integers beyond `known` that are in no line of the tensor yet.

    Masks, kinds of tokens and positions stay as they are: two values, or all between two in order.
    """
    used = torch.unique(repeated)
    if repeated.dtype == torch.bool or len(used) < 3 or repeated.numel() > _MOST_IDS:
        return repeated
    low, count = int(used[0]), int(used[-1]) - int(used[0]) + 1
    steps = repeated.narrow(axis, 0, known).diff(dim=-1)
    if count == len(used) and bool((steps >= 0).all() or (steps <= 0).all()):
        return repeated
    draw = random.Random(axis)
    values = repeated.numpy(force=True).copy()
    lines: dict[tuple[int | None, ...], set[int]] = {}
    new = []
    for place in product(*map(range, values.shape)):
        if place[axis] >= known:
            new.append(place)
            continue
        for line in _lines(place):
            lines.setdefault(line, set()).add(int(values[place]))
    for place in new:
        through = [lines.setdefault(line, set()) for line in _lines(place)]
        first = draw.randrange(count)
        tries = min(count, 1 + sum(map(len, through)))
        candidates = (low + (first + step) % count for step in range(tries))
        free = (
            candidate
            for candidate in candidates
            if not any(candidate in values_there for values_there in through)
        )
        values[place] = value = next(free, int(values[place]))
        for known_values in through:
            known_values.add(value)
    return torch.from_numpy(values)


def _lines(place: tuple[int, ...]) -> Iterator[tuple[int | None, ...]]:
    """Yield the lines of a tensor that go through a place, one along each axis."""
    for axis in range(len(place)):
        yield (*place[:axis], None, *place[axis + 1 :])


Run = Callable[[Sequence[torch.Tensor]], list[torch.Tensor]]
# The inputs of a run of the original model, and its outputs.
SizeRun = tuple[tuple[ModelInput, ...], list[torch.Tensor]]


@dataclass(frozen=True)
class SizeTrials:
    """Runs the original model at sizes of its dynamic dimensions."""

    inputs: Sequence[ModelInput]  # the example
    run: Run  # runs the original model
    # Smallest and largest size of dimensions beyond which nothing is tried by itself.
    ranges: Mapping[str, tuple[int, int | None]] = field(default_factory=dict)
    # Returns sizes in which those that follow from others do so.
    complete: Callable[[Mapping[str, int]], dict[str, int]] = dict

    def at(self, sizes: Mapping[str, int]) -> SizeRun | Exception:
        """Run the original model at given sizes; return what it raises where it does not take them.

        Where it is known which input says which tokens are valid, there is padding at these sizes:
        on both sides, or where the model does not take that, on the right, or as in the example.
        Valid tokens stand in for what is padding in the example, and not here.
        """
        made = self._with_ids(sizes, new=True)
        has_ids = not all(item.value.is_floating_point() for item in self.inputs)
        # It may need those of the example.
        return self._with_ids(sizes, new=False) if isinstance(made, Exception) and has_ids else made

    def _with_ids(self, sizes: Mapping[str, int], *, new: bool) -> SizeRun | Exception:
        complete = self.complete(sizes)
        try:
            full = resize_inputs(padding.without_padding(self.inputs), complete, new_ids=new)
        except ConfigError as error:
            return error
        if not any(item.says_valid for item in self.inputs):
            return _try_run(full, self.run)
        return (
            run_padded(full, self.run, *padding.TURNS)
            or run_padded(full, self.run, "right", None)
            or _try_run(resize_inputs(self.inputs, complete, new_ids=new), self.run)
        )

    def others(self, *, thorough: bool = True) -> Iterator[SizeRun]:
        """Run at other sizes of all dimensions: changed ones, and the smallest, where it can.

        Not every size is legal (images in whole patches, tables of positions): the original model
        decides. Where no change of all dimensions together is legal, each one is changed alone.

        Args:
            thorough: Try both. For a model that takes long, the smallest sizes alone say that they
                are dynamic.

        Raises:
            ExportError: If a dimension can be changed to no other size.
        """
        example = example_sizes(self.inputs)
        if not example:
            return
        if thorough:
            yield from self.changed()
        smallest = self.at({name: self.ranges.get(name, (1, None))[0] for name in example})
        if not isinstance(smallest, Exception):
            yield smallest
        elif not thorough:
            yield from self.changed()

    def changed(self) -> Iterator[SizeRun]:
        """Run at changed sizes of all dimensions together, or of each alone."""
        example = example_sizes(self.inputs)
        together = [{name: how(size) for name, size in example.items()} for how in _CHANGES]
        try:
            yield self._first_that_runs(together)
        except ExportError:
            for name, size in example.items():
                alone = [{**example, name: how(size)} for how in _CHANGES]
                if any(self.complete(sizes) != example for sizes in alone):
                    yield self._first_that_runs(alone)

    def _first_that_runs(self, candidates: Sequence[Mapping[str, int]]) -> SizeRun:
        failures: list[str] = []
        for sizes in map(self.complete, candidates):
            at = ", ".join(f"{name}={size}" for name, size in sizes.items())
            beyond = []
            for name, size in sizes.items():
                smallest, largest = self.ranges.get(name, (0, None))
                if size < smallest or (largest is not None and size > largest):
                    beyond.append(name)
            result = None if beyond else self.at(sizes)
            if result is not None and not isinstance(result, Exception):
                return result
            why = first_line(result) if result else f"the trace limits {', '.join(beyond)}"
            failures.append(f"{at}: {why}")
        raise ExportError(
            "the model was declared dynamic, but the original runs at no other size than the"
            f" example's; tried {'; '.join(failures)[:600]}.",
            hint="Leave the axis out of --dynamic if the model has one size.",
        )


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, or its kind if it says nothing."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


_CHANGES: tuple[Callable[[int], int], ...] = (
    lambda size: size + 1,
    lambda size: max(size - 1, 1),
    lambda size: size * 2,
    lambda size: max(size // 2, 1),
    lambda size: size + 2,
    lambda size: size * 3,
)


def run_padded(
    inputs: Sequence[ModelInput], run: Run, *sides: padding.Side | None
) -> SizeRun | None:
    """Run the original model with padding; None where it does not take that.

    Args:
        sides: Where the samples are padded, by turns.
    """
    found = _try_run(padding.with_padding(inputs, sides), run)
    if isinstance(found, Exception):
        return None
    # Padding that makes valid tokens NaN the model does not take.
    (mask,) = (to_torch(padding.tokens_of(item).mask) for item in found[0] if item.says_valid)
    for output in found[1]:
        if output.shape[:2] == mask.shape:
            output = output[mask]
        elif output.shape[:2] == mask.T.shape:
            output = output[mask.T]
        # Where its tokens are is not certain: any NaN counts.
        if bool(output.isnan().any()):
            return None
    return found


def run_with_zeros(inputs: Sequence[ModelInput], run: Run, side: padding.Side) -> SizeRun | None:
    """Run the original model with 0 on a side of what may be masks; None where it does not take
    that, or computes no numbers."""
    found = _try_run(padding.with_zeros(inputs, side), run)
    if isinstance(found, Exception) or not all(output.isfinite().all() for output in found[1]):
        return None
    return found


def _try_run(inputs: tuple[ModelInput, ...], run: Run) -> SizeRun | Exception:
    """Run the original model; return what it raises where it does not take the inputs."""
    try:
        return inputs, run([item.value for item in inputs])
    except Exception as error:  # the user's own code
        return error


# The dynamic dimensions of a trace.

Bounds = tuple[int | None, int | None]
"""Smallest and largest size of a dimension; None where there is no limit."""


def dynamic_shapes(
    names: Sequence[str], inputs: Sequence[ModelInput], bounds: Mapping[str, Bounds]
) -> dict[str, object] | None:
    """Return the dynamic axes of each input, by the parameter that takes it; None where nothing is
    dynamic.

    Args:
        names: The parameters, as `taking_tensors` calls them.
        bounds: Smallest and largest size of some dimensions.
    """
    exprs = [item.parsed_dims for item in inputs]
    plain = {expr.name for axes in exprs for expr in axes.values() if expr.is_plain}

    def dim(expr: DimExpr) -> object:
        # What the model allows, or a multiple of what no axis is.
        if expr.name in plain:
            return Dim.AUTO
        least, most = bounds.get(expr.name, (None, None))
        # 4*t-3 is a size from t = 1 on.
        smallest = max(least or 0, -(expr.offset // expr.multiplier))
        own = Dim(expr.name, min=smallest, max=most)
        scaled = own if expr.multiplier == 1 else expr.multiplier * own
        return scaled + expr.offset if expr.offset else scaled

    shapes = [{axis: dim(expr) for axis, expr in parsed.items()} for parsed in exprs]
    return dict(zip(names, shapes, strict=True)) if any(shapes) else None
