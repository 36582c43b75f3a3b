"""Draw the time of layers on a page: as chosen beside dense, and their speed by open heads."""

from collections.abc import Iterator, Mapping, Sequence

from moh_deploy import package as pkg
from moh_deploy.perf.choices_text import (
    OTHERS,
    Predictions,
    dense_and_chosen_ms,
    measured_text,
    ratio_text,
    sizes_text,
    times_of,
)
from moh_deploy.perf.cost_model.prediction import SpeedByShare
from moh_deploy.perf.timing import Ratio
from moh_deploy.report.document import PAGE, Cell, Drawn, Section, Share, SpeedChart, Table, Text

# What is slower than dense by less than rounding of its digits is not drawn as slower.
_SAME = 1.005


def predicted_times(manifest: pkg.Manifest, predictions: Predictions) -> Iterator[Section]:
    """Yield the drawing of predicted times, as `measured_times` does of measured ones."""
    times = [() if layer is None else (layer.ms,) for layer in predictions]
    about = "as predicted for one thread of an AVX-512 processor"
    yield from _times(manifest.layers, [manifest.dims], [1.0], times, about, ())


def measured_times(layers: Sequence[pkg.LayerInfo], tuning: pkg.Tuning) -> Iterator[Section]:
    """Yield where time goes by layer, as measured by `tune`; nothing if no layer was timed."""
    times = [times_of(tuning, index) for index in range(len(layers))]
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
        if (ms := dense_and_chosen_ms(layer, sizes, weights, of_layer)) is not None
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
