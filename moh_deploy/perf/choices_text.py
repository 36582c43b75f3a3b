"""Format execution modes, measured times and predictions of layers for reports."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from moh_deploy import package as pkg
from moh_deploy.perf.cost_model.prediction import Prediction
from moh_deploy.perf.timing import Ratio
from moh_deploy.report.document import (
    DETAILED,
    EVERYWHERE,
    Cell,
    Column,
    Format,
    Table,
    Text,
    percent,
)
from moh_deploy.report.report import count
from moh_deploy.runtime.kernel_use import KernelUse
from moh_deploy.runtime.layers_text import paths_text

# Of layers: a terminal shows the first, and says how many there are in all.
MOST_ROWS = 3

Predictions = Sequence[Prediction | None]
"""One a layer; None where nothing is known."""


def choice_table(manifest: pkg.Manifest, predictions: Predictions) -> Table:
    """Return a table of what each layer was chosen to be and what is predicted for it."""
    columns: list[Column | str] = ["layer", "choice", *ms_columns(), "#gain"]
    columns += [Column(f"#{choice} gains up to", DETAILED) for choice in pkg.CHOICES[1:]]
    columns.append("fastest")
    measured = measured_text(manifest.tuning)
    columns += ["#measured gain"] if measured else []
    title = "choices, with times as predicted for one thread of an AVX-512 processor"
    rows: list[tuple[Cell, ...]] = []
    for index, layer in enumerate(manifest.layers):
        figures = choice_figures(manifest, predictions[index], index)
        # Up to which share of active heads a choice is faster than the one before it.
        limits = figures.break_even_share
        shown = [percent(limits[c]) or "never" if c in limits else None for c in pkg.CHOICES[1:]]
        times = [times_text(figures.predicted_gain), *shown, figures.predicted_fastest]
        times += [measured_gain_text(layer, manifest.tuning, index)] if measured else []
        rows.append((layer.path, pkg.choice_text(layer), *ms_cells(figures.predicted_ms), *times))
    # Of many layers a terminal has a sentence, `choice_summary`.
    where = DETAILED if len(rows) > MOST_ROWS else EVERYWHERE
    return Table(title, columns, rows, shown=where)


def choice_summary(manifest: pkg.Manifest, predictions: Predictions) -> Text:
    """Return the choices of all layers, and between which gains they are, for a terminal."""
    chosen = Counter(pkg.choice_text(layer) for layer in manifest.layers if layer.choice)
    text = f"choices: {', '.join(f'{number} {choice}' for choice, number in chosen.items())}"
    tuning = manifest.tuning
    is_measured = tuning is not None and tuning.source == "measured"
    gains = []
    for index, layer in enumerate(manifest.layers):
        figures = choice_figures(manifest, predictions[index], index)
        known = figures.measured_gain if is_measured else figures.predicted_gain
        # Where measuring could not tell, a number would be read as an answer.
        if known is not None and not (tuning and layer.path in tuning.undecided):
            gains.append(known)
    if gains:
        ends = dict.fromkeys((times_text(min(gains)), times_text(max(gains))))
        source = "measured" if is_measured else "predicted"
        text += f"; {source} gain over dense {' to '.join(map(str, ends))}"
    shown = frozenset[Format](("terminal",) if len(manifest.layers) > MOST_ROWS else ())
    return Text(f"{text} (--verbose)", shown=shown)


def choice_lines(
    manifest: pkg.Manifest, predictions: Predictions, kernels: KernelUse
) -> Iterator[str]:
    """Yield what to know before money is spent: where skipping heads does not pay."""
    full = [layer.path for layer in manifest.layers if never_skips(layer)]
    if full:
        yield f"no gate was zero in the recorded runs, so no head is skipped: {paths_text(full)}"
    dense: list[str] = []
    others: dict[tuple[str, str], list[str]] = {}
    for layer, prediction in zip(manifest.layers, predictions, strict=True):
        if prediction is None:
            continue
        own = pkg.current_choice(layer, manifest.dims)
        if prediction.best == "dense":
            dense.append(layer.path)
        if own is not None and prediction.best != own:
            others.setdefault((own, prediction.best), []).append(layer.path)
    if dense:
        yield f"dense is faster here, as predicted: {paths_text(dense)}"
    for (chosen, best), paths in others.items():
        yield f"chosen {chosen}, predicted to be faster {best}: {paths_text(paths)}"
    if kernels.library is None and any(map(pkg.choices_for, manifest.layers)):
        yield (
            "without kernels, as here, every choice runs the same function bodies: no gain at all"
        )
    measured = measured_text(manifest.tuning)
    if measured is not None:
        yield f"choices {measured}"
    elif any(map(pkg.choices_for, manifest.layers)):
        yield "choices rest on predictions; `moh-deploy tune` measures them on your machine"
    if manifest.tuning is not None and manifest.tuning.source == "measured":
        yield from undecided_lines(manifest.tuning)
        yield from other_winners(manifest.layers, manifest.tuning)


@dataclass(frozen=True)
class ChoiceFigures:
    """The times of one layer by choice, predicted and measured, as JSON has them."""

    predicted_ms: Mapping[str, float]
    predicted_fastest: str | None
    predicted_gain: float | None
    break_even_share: Mapping[str, float | None]
    measured_ms: Mapping[str, float]
    measured_gain: float | None


def choice_figures(
    manifest: pkg.Manifest, prediction: Prediction | None, index: int
) -> ChoiceFigures:
    """Return the figures of one layer."""
    predicted, layer = {} if prediction is None else prediction.ms, manifest.layers[index]
    return ChoiceFigures(
        predicted_ms=predicted,
        predicted_fastest=min(predicted, key=predicted.__getitem__, default=None),
        # Predictions are for the example's sizes. Where nothing is skipped, nothing is gained.
        predicted_gain=None
        if never_skips(layer)
        else gain(layer, [manifest.dims], [1.0], [predicted]),
        break_even_share={} if prediction is None else prediction.break_even,
        measured_ms={} if manifest.tuning is None else measured_ms(manifest.tuning, index),
        measured_gain=measured_gain(layer, manifest.tuning, index),
    )


def never_skips(layer: pkg.LayerInfo) -> bool:
    """True where no gate was zero in any recorded run."""
    return layer.active_share == 1


def measured_text(tuning: pkg.Tuning | None) -> str | None:
    """Return `measured at batch=2 ...` or `given by hand`; None where choices are predictions."""
    if tuning is None:
        return None
    if tuning.source == "given":
        return "given by hand"
    sizes = "; ".join(map(sizes_text, tuning.sizes))
    return (
        f"measured at {sizes} ({tuning.clock} time, {threads_text(tuning)}, {tuning.runtime},"
        f" {tuning.machine})"
    )


def threads_text(tuning: pkg.Tuning) -> str:
    """Return a number of threads as text: `2 threads`."""
    return "the runtime's threads" if tuning.threads is None else count(tuning.threads, "thread")


def measured_ms(tuning: pkg.Tuning, index: int) -> dict[str, float]:
    """Return choice to milliseconds of a layer in one run, the mean over inputs as they count; may
    be empty."""
    sets = times_of(tuning, index)
    if not sets:
        return {}
    weighted, total = list(zip(tuning.weights, sets, strict=True)), sum(tuning.weights)
    return {name: sum(weight * ms[name] for weight, ms in weighted) / total for name in sets[0]}


def measured_gain(layer: pkg.LayerInfo, tuning: pkg.Tuning | None, index: int) -> float | None:
    """Return how many times as fast as dense a layer was measured to be, as chosen for each of the
    sizes; None if that is not known."""
    if tuning is None:
        return None
    return gain(layer, tuning.sizes, tuning.weights, times_of(tuning, index))


def measured_gain_text(layer: pkg.LayerInfo, tuning: pkg.Tuning | None, index: int) -> str | None:
    """Return `1.25x`, or `unsure` where measuring could not tell which choice is the fastest: there
    a number would be read as an answer."""
    if tuning is not None and layer.path in tuning.undecided:
        return "unsure"
    return times_text(measured_gain(layer, tuning, index))


def undecided_lines(tuning: pkg.Tuning) -> Iterator[str]:
    """Yield which layers were too close or too noisy to tell."""
    if tuning.undecided:
        yield (
            "too close or too noisy to tell, so as predicted, or else the plainest:"
            f" {paths_text(tuning.undecided)}"
        )


def times_of(tuning: pkg.Tuning, index: int) -> Sequence[Mapping[str, float]]:
    """Return choice to milliseconds of a layer at each of the sizes; nothing if it has no times."""
    return tuning.layer_ms[index] if index < len(tuning.layer_ms) else ()


def gain(
    layer: pkg.LayerInfo,
    sizes: Sequence[Mapping[str, int]],
    weights: Sequence[float],
    times: Sequence[Mapping[str, float]],
) -> float | None:
    """Return how many times as fast as dense a layer is as chosen; None if that is not known.

    Args:
        layer: The layer.
        sizes: Sizes of some runs.
        weights: How often each counts.
        times: Choice to milliseconds in each.
    """
    dense, chosen = dense_and_chosen_ms(layer, sizes, weights, times) or (0.0, 0.0)
    return dense / chosen if chosen else None


def dense_and_chosen_ms(
    layer: pkg.LayerInfo,
    sizes: Sequence[Mapping[str, int]],
    weights: Sequence[float],
    times: Sequence[Mapping[str, float]],
) -> tuple[float, float] | None:
    """Return the mean time of a layer that is dense, and as it is chosen, over runs as they
    weigh; None if one is not known. Arguments as of `gain`."""
    dense = chosen = total = 0.0
    for at, weight, ms in zip(sizes, weights, times, strict=False):
        choice = pkg.current_choice(layer, at)
        if choice is None or not {"dense", choice} <= ms.keys():
            return None
        dense, chosen = dense + weight * ms["dense"], chosen + weight * ms[choice]
        total += weight
    return (dense / total, chosen / total) if total else None


def other_winners(layers: Sequence[pkg.LayerInfo], tuning: pkg.Tuning) -> Iterator[str]:
    """Yield a sentence for each of several sets of inputs at which another choice was faster, in
    some layers."""
    if len(tuning.sizes) < 2:
        return
    # Where and what to the layers, with the times of that choice and of their own.
    found: dict[tuple[str, str], list[tuple[str, float, float]]] = {}
    for index, layer in enumerate(layers):
        for sizes, ms in zip(tuning.sizes, times_of(tuning, index), strict=False):
            own = str(pkg.current_choice(layer, sizes))
            best = min(ms, key=lambda name: ms[name], default=own)
            if own in ms and ms[best] < ms[own]:
                where = sizes_text(sizes), best
                found.setdefault(where, []).append((layer.path, ms[best], ms[own]))
    for (at, best), slower in found.items():
        path, best_ms, own_ms = max(slower, key=lambda times: times[2] - times[1])
        layer_name = "" if len(slower) == 1 else f" in {path}"
        yield (
            f"{paths_text([name for name, *_ in slower])}: at {at} {best} was faster,"
            f" {best_ms:.3g} ms against {own_ms:.3g}{layer_name}"
        )


# The whole model, beside these.
OTHERS = {"dense": "with every layer dense", "one_choice": "with one choice a layer"}


def ratio_text(chosen: Ratio, other: str) -> str:
    """Return `1.250x as fast as with every layer dense (95 %: 1.200x to 1.300x)`."""
    low, high = 1 / chosen.high, 1 / chosen.low
    return f"{1 / chosen.value:.3f}x as fast as {other} (95 %: {low:.3f}x to {high:.3f}x)"


def boundary_lines(layers: Sequence[pkg.LayerInfo], tuning: pkg.Tuning) -> Iterator[str]:
    """Yield a sentence on each boundary of ranges: between which measured sizes it lies."""
    bounds = {(range_.size, range_.at_most) for layer in layers for range_ in layer.ranges}
    for size, at_most in sorted(bounds):
        values = sorted(pkg.measure(size, sizes) for sizes in tuning.sizes)
        below, above = [v for v in values if v <= at_most], [v for v in values if v > at_most]
        if below and above:
            yield (
                f"the boundary {size}<={at_most} is the geometric mean of {below[-1]} and"
                f" {above[0]}; between them nothing was measured"
            )


def sizes_text(sizes: Mapping[str, int]) -> str:
    """Return sizes as text: `batch=2, seq=256`."""
    return ", ".join(f"{name}={size}" for name, size in sizes.items()) or "the fixed sizes"


def times_text(gain: float | None) -> str | None:
    """Return a gain as text: `1.25x`."""
    return None if gain is None else f"{gain:.2f}x"


def ms_columns() -> list[Column]:
    """Return a column for the times of each choice."""
    return [Column(f"#{choice}, ms", DETAILED) for choice in pkg.CHOICES]


def ms_cells(ms: Mapping[str, float]) -> list[str | None]:
    """Return a cell for each choice."""
    return [f"{ms[choice]:.3g}" if choice in ms else None for choice in pkg.CHOICES]
