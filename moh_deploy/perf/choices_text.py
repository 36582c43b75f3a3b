"""Format execution modes, measured times and predictions of layers for reports."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from moh_deploy import package as pkg
from moh_deploy.perf.cost_model.prediction import Prediction, SpeedByShare
from moh_deploy.perf.timing import Ratio
from moh_deploy.report.document import (
    DETAILED,
    PAGE,
    Cell,
    Column,
    Drawn,
    Section,
    Share,
    SpeedChart,
    Table,
    Text,
    percent,
)
from moh_deploy.report.report import count
from moh_deploy.runtime.kernel_use import KernelUse
from moh_deploy.runtime.layers_text import paths_text

# What is slower than dense by less than rounding of its digits is not drawn as slower.
_SAME = 1.005

# Of layers: a terminal shows the first, and says how many there are in all.
MOST_ROWS = 4

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
    return Table(title, columns, rows, most_rows=MOST_ROWS)


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
    sets = _times_of(tuning, index)
    if not sets:
        return {}
    weighted, total = list(zip(tuning.weights, sets, strict=True)), sum(tuning.weights)
    return {name: sum(weight * ms[name] for weight, ms in weighted) / total for name in sets[0]}


def measured_gain(layer: pkg.LayerInfo, tuning: pkg.Tuning | None, index: int) -> float | None:
    """Return how many times as fast as dense a layer was measured to be, as chosen for each of the
    sizes; None if that is not known."""
    if tuning is None:
        return None
    return gain(layer, tuning.sizes, tuning.weights, _times_of(tuning, index))


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


def _times_of(tuning: pkg.Tuning, index: int) -> Sequence[Mapping[str, float]]:
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
    dense, chosen = _dense_and_chosen_ms(layer, sizes, weights, times) or (0.0, 0.0)
    return dense / chosen if chosen else None


def _dense_and_chosen_ms(
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


# What a page draws of time: each layer as it is chosen beside dense, and speed by open heads.


def predicted_times(manifest: pkg.Manifest, predictions: Predictions) -> Iterator[Section]:
    """Yield the drawing of predicted times, as `measured_times` does of measured ones."""
    times = [() if layer is None else (layer.ms,) for layer in predictions]
    about = "as predicted for one thread of an AVX-512 processor"
    yield from _times(manifest.layers, [manifest.dims], [1.0], times, about, ())


def measured_times(layers: Sequence[pkg.LayerInfo], tuning: pkg.Tuning) -> Iterator[Section]:
    """Yield where time goes by layer, as measured by `tune`; nothing if no layer was timed."""
    times = [_times_of(tuning, index) for index in range(len(layers))]
    about = f"as {measured_text(tuning)}"
    yield from _times(layers, tuning.sizes, tuning.weights, times, about, tuning.undecided)


def _times(
    layers: Sequence[pkg.LayerInfo],
    sizes: Sequence[Mapping[str, int]],
    weights: Sequence[float],
    times: Sequence[Sequence[Mapping[str, float]]],
    source: str,
    undecided: Sequence[str],
) -> Iterator[Section]:
    found = [
        (layer, ms)
        for layer, of_layer in zip(layers, times, strict=True)
        if (ms := _dense_and_chosen_ms(layer, sizes, weights, of_layer)) is not None
    ]
    if not found:
        return
    total = tuple(sum(ms[side] for _, ms in found) for side in (0, 1))
    rows: list[tuple[Cell, ...]] = []
    for layer, (dense, chosen) in found:
        words = f"{chosen:.3g} ms as chosen, {dense:.3g} ms dense"
        # As a bar up to the chosen time; the upright line is dense.
        drawn = Drawn(
            words, chosen, dense, bar_from=0.0, has_dot=False, is_bad=chosen > dense * _SAME
        )
        unsure = ", unsure" if layer.path in undecided else ""
        share = Share(chosen / total[1])
        rows.append((layer.path, f"{pkg.choice_text(layer)}{unsure}", drawn, chosen, dense, share))
    rows.append(("all layers", None, None, total[1], total[0], Share(1.0)))
    about = (
        f"Attention, and the projections that belong to the layer, {source}. The bar is the time of"
        " a layer as it is chosen, the upright line that of the same layer dense."
    )
    columns = ("layer", "choice", "ms", "#ms", "#dense, ms", "#share of these")
    table = Table("time of each layer", columns, rows, "layer-times", PAGE, "numbers", (0.0,))
    yield Section("Where time goes, sparse beside dense", (Text(about), table), shown=PAGE)


def speed_section(found: SpeedByShare | None) -> Iterator[Section]:
    """Yield the predicted speed of all layers by the share of open heads; nothing for None."""
    if found is None:
        return
    chart = SpeedChart(
        "speed of all layers together, at the example's sizes",
        "predicted by the cost model, every layer skipping heads",
        found.points,
        (found.active_share, found.speed),
        found.break_even,
    )
    about = (
        "Predicted from sizes, not measured: attention with the projections beside it, against"
        " standard operators that compute every head. Routers and all else are not counted. Fewer"
        " open heads are faster; right of the break-even, dense is."
    )
    yield Section("Speed by open heads", (Text(about), chart), shown=PAGE)


def other_winners(layers: Sequence[pkg.LayerInfo], tuning: pkg.Tuning) -> Iterator[str]:
    """Yield a sentence for each of several sets of inputs at which another choice was faster, in
    some layers."""
    if len(tuning.sizes) < 2:
        return
    # Where and what to the layers, with the times of that choice and of their own.
    found: dict[tuple[str, str], list[tuple[str, float, float]]] = {}
    for index, layer in enumerate(layers):
        for sizes, ms in zip(tuning.sizes, _times_of(tuning, index), strict=False):
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


def model_speeds(
    tuning: pkg.Tuning, model_ratios: Sequence[Mapping[str, Ratio]]
) -> Iterator[Table]:
    """Yield a page's drawing of what was measured of the whole model; nothing if nothing was.

    Args:
        tuning: Its sizes.
        model_ratios: At each of them, the time over that of each of `OTHERS`.
    """
    rows: list[tuple[Cell, ...]] = []
    for sizes, ratios in zip(tuning.sizes, model_ratios, strict=False):
        for name, ratio in ratios.items():
            value, low, high = 1 / ratio.value, 1 / ratio.high, 1 / ratio.low
            words = ratio_text(ratio, OTHERS[name])
            drawn = Drawn(words, value, 1.0, (low, high), 1.0, is_bad=high < 1)
            text = f"{value:.3f}x ({low:.3f} to {high:.3f})"
            rows.append((sizes_text(sizes), OTHERS[name], drawn, text))
    columns = ("at", "beside the model", "times as fast, 95 % interval", "#speed (95 %)")
    if rows:
        yield Table("whole model, measured", columns, rows, "model-speeds", PAGE, "ratios")


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
