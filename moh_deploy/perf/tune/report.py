"""Report measured times and the modes chosen by them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from moh_deploy import package as pkg
from moh_deploy.config.dtypes import RUNTIMES, Runtime
from moh_deploy.perf import choices_text, time_drawings
from moh_deploy.perf.cost_model.prediction import SpeedByShare
from moh_deploy.perf.timing import Ratio
from moh_deploy.perf.tune.quality import Quality
from moh_deploy.report import document as doc
from moh_deploy.report.report import HIDDEN, Report, count, in_json
from moh_deploy.runtime.kernel_use import KernelUse
from moh_deploy.runtime.layers_text import reasons
from moh_deploy.validate.accuracy.metric_parity import shown

# What a search for the fastest package that is still good tried, and what it wrote.

# What a search for the fastest package tried, and how each candidate ended.

Ending = Literal["chosen", "too slow", "not good", "could not run"]

FLOAT32 = "float32"


@dataclass(frozen=True)
class RuntimePrecision:
    """A runtime and a precision: one candidate of a search."""

    runtime: Runtime  # what runs it
    precision: str  # a name of `LOWER_PRECISIONS`, or `float32`

    @property
    @in_json()
    def name(self) -> str:
        """Return its name in reports: `int8 in ONNX Runtime`."""
        return f"{self.precision} in {RUNTIMES[self.runtime]}"


@dataclass(frozen=True)
class Timed:
    """The time of a candidate beside that of another, in turns."""

    rival: str  # the other one, the fastest at that time
    ms: float  # median of a run; of several inputs, as they weigh
    rival_ms: float  # the rival's, in the same turns
    ratio: Ratio  # its time over the rival's

    def inverse(self, name: str) -> Timed:
        """Return the rival's time beside this candidate's, of this name."""
        ratio = self.ratio
        turned = Ratio(1 / ratio.value, 1 / ratio.high, 1 / ratio.low)
        return Timed(name, self.rival_ms, self.ms, turned)

    def sentence(self) -> str:
        """Return `1.310x the time of int8 in ONNX Runtime (95 %: 1.280x to 1.350x)`."""
        ratio = self.ratio
        interval = f"95 %: {ratio.low:.3f}x to {ratio.high:.3f}x"
        return f"{ratio.value:.3f}x the time of {self.rival} ({interval})"


@dataclass(frozen=True)
class Tried:
    """One candidate, and how it ended."""

    way: RuntimePrecision  # the candidate
    ending: Ending  # `chosen`, or why it was not
    reason: str | None = None  # that in a sentence; None of what was chosen
    timed: Timed | None = None  # its last measurement; None if it was not timed against another
    quality: Quality | None = None  # the last look at its samples; None if there was none


@dataclass(frozen=True)
class SearchReport(Report):
    """The result of a search.

    Attributes:
        package: The float32 package.
        output: The package that was written; None if nothing was.
        within: The conditions.
        runtime: What the chosen package is the fastest in.
        precision: Of the chosen package.
        machine: Processor, cores and instruction set.
        clock: `CPU` or `wall`: what times are of.
        threads: Threads within an operator; None for the runtime's own choice.
        sizes: What was timed, one a set of inputs.
        tried: Every candidate.
        kernels: The kernel library of the chosen one.
    """

    package: Path
    output: Path | None
    within: tuple[str, ...]
    runtime: Runtime
    precision: str
    machine: str
    clock: str
    threads: int | None
    sizes: tuple[Mapping[str, int], ...]
    tried: tuple[Tried, ...]
    kernels: KernelUse

    def document(self) -> doc.Document:
        """Return what it says."""
        judged = [way.quality for way in self.tried if way.quality is not None]
        metrics = list(dict.fromkeys(x.metric for quality in judged for x in quality.accuracy))
        columns: tuple[doc.Column | str, ...] = (
            "candidate",
            "",
            "#ms",
            doc.Column("times beside the rival, 95 % interval", doc.PAGE),
            "#times",
            doc.Column("of", width="words"),
            "#other heads",
            *(f"#{name}" for name in metrics),
            doc.Column("why not", doc.NOT_TERMINAL, "long"),
        )
        at = "; ".join(map(choices_text.sizes_text, self.sizes))
        threads = "" if self.threads is None else f", {count(self.threads, 'thread')}"
        title = f"tried, {self.clock} time of a run{threads}, at {at}"
        chosen = next(way for way in self.tried if way.ending == "chosen")
        ms = _comparable_ms(chosen, self.tried)
        rows = [_row(way, metrics, ms.get(way.way.name)) for way in self.tried]
        # A terminal folds words in narrow columns, and a reason may hold a command to copy.
        reasons = [
            doc.Text(f"{way.way.name}: {way.reason}", shown=doc.IN_TERMINAL, is_whole=True)
            for way in self.tried
            if way.reason is not None
        ]
        answer = chosen.way.name
        if chosen.timed is not None:
            answer += f", {chosen.timed.sentence()}"
        blocks: tuple[doc.Block, ...] = (
            doc.Table(title, columns, rows, "tried", axis="ratios"),
            *reasons,
        )
        return doc.Document(
            "tune",
            blocks,
            doc.Verdict("CHOSEN", True, f"{answer}.", (answer,)),
            findings=tuple(self._lines(chosen)),
            warning=self.kernels.warning,
        )

    def _lines(self, chosen: Tried) -> Iterator[str]:
        yield f"asked for: {'; '.join(self.within)}"
        yield f"measured on {self.machine}"
        if chosen.quality is not None:
            for metric in chosen.quality.accuracy:
                name, samples = metric.metric, count(metric.samples, "sample")
                value, reference = shown(name, metric.package), shown(name, metric.reference)
                yield f"{name} is {value}, {reference} in {metric.against}, on {samples}"
            if chosen.quality.too_few is not None:
                yield f"samples are too few to judge other precisions: {chosen.quality.too_few}"
        yield self.kernels.describe()
        written = self.output
        yield f"written to {written}" if written is not None else "dry run: nothing was written"


def _comparable_ms(chosen: Tried, tried: Sequence[Tried]) -> dict[str, float]:
    """Return the milliseconds of each candidate that was timed, by the chosen one's and ratios.

    Each ratio is of turns with one rival. Measured milliseconds of different turns do not divide:
    the processor's clock and its other work change in between.
    """
    if chosen.timed is not None:
        ms = {chosen.way.name: chosen.timed.ms}
    else:  # never beaten, so it has no rival, and is that of others
        timed = [way.timed for way in tried if way.timed is not None]
        ms = {of.rival: of.rival_ms for of in timed if of.rival == chosen.way.name}
    for _ in tried:  # a rival may stand behind those that were timed against it
        for way in tried:
            if way.timed is not None and way.timed.rival in ms:
                ms.setdefault(way.way.name, way.timed.ratio.value * ms[way.timed.rival])
    return ms


def _row(way: Tried, metrics: Sequence[str], ms: float | None) -> tuple[doc.Cell, ...]:
    timed, quality = way.timed, way.quality
    times = drawn = None
    if timed is not None:
        value, low, high = timed.ratio.value, timed.ratio.low, timed.ratio.high
        times = f"{value:.2f} ({low:.2f} to {high:.2f})"
        drawn = doc.Drawn(timed.sentence(), value, 1.0, (low, high), 1.0, is_bad=low > 1)
    flips = None if quality is None else f"{quality.flips.tokens} of {quality.flips.of}"
    values = (
        {} if quality is None else {x.metric: shown(x.metric, x.package) for x in quality.accuracy}
    )
    return (
        way.way.name,
        doc.Status(way.ending, True if way.ending == "chosen" else None),
        ms,
        drawn,
        times,
        None if timed is None else timed.rival,
        flips,
        *(values.get(name) for name in metrics),
        way.reason,
    )


@dataclass(frozen=True)
class TunedLayer:
    """The measurements of one layer and its choice, as JSON has them."""

    path: str
    before: str | None
    asked: str | None
    choice: str | None
    ranges: tuple[pkg.SizeRange, ...]
    measured_ms: Mapping[str, float]
    measured_gain: float | None
    predicted_gain: float | None
    undecided: bool


@dataclass(frozen=True)
class TuneReport(Report):
    """The result of a tuning.

    Attributes:
        package: The package.
        before: Its layers as they were.
        layers: Its layers as chosen.
        tuning: What the choices rest on.
        asked: Path of a layer, or `all`, to the choice that was given; nothing if it was measured.
        predicted_gains: For each layer, how many times as fast as dense it is predicted to be as
            chosen, at the sizes that were measured, or else the example's; None if unknown.
        model_ratio: Time of the whole model with the layers' own choices over that with all layers
            dense; None if it was not measured.
        model_ratios: For each set of inputs, the same over `dense` and, if choices depend on sizes,
            over `one_choice`: all layers with one choice each.
        dense_was_faster: Numbers of the sets of inputs on which the whole model was slower with the
            layers' own choices: there all are dense.
        ranges_did_not_pay: With ranges the whole model was nowhere faster, so they were left out.
        max_abs_error: Largest difference of an output from the original model's, as chosen.
        flipped_tokens: Input files on which tokens chose other heads than before (ties within
            rounding), to how many: outputs were not compared there.
        kernels: The kernel library that was measured.
        written: The choices were written into the package.
        speed: The predicted speed of all layers by the share of open heads, at the example's sizes;
            None if unknown.
    """

    package: Path
    before: tuple[pkg.LayerInfo, ...] = field(metadata=HIDDEN)
    layers: tuple[pkg.LayerInfo, ...] = field(metadata=HIDDEN)
    tuning: pkg.Tuning
    asked: Mapping[str, str] = field(metadata=HIDDEN)
    predicted_gains: tuple[float | None, ...] = field(metadata=HIDDEN)
    model_ratio: Ratio | None
    model_ratios: tuple[Mapping[str, Ratio], ...]
    dense_was_faster: tuple[int, ...] = field(metadata=HIDDEN)
    ranges_did_not_pay: bool
    max_abs_error: float
    flipped_tokens: Mapping[str, int]
    kernels: KernelUse
    written: bool
    speed: SpeedByShare | None = None

    @property
    def undecided(self) -> tuple[str, ...]:
        """Paths of layers where measuring could not tell which choice is the fastest."""
        return self.tuning.undecided

    @property
    @in_json("layers")
    def _tuned(self) -> tuple[TunedLayer, ...]:
        return tuple(map(self._layer, range(len(self.layers))))

    @property
    @in_json()
    def model_gain(self) -> float | None:
        """Return the gain of the whole model over all layers dense."""
        return None if self.model_ratio is None else 1 / self.model_ratio.value

    @property
    @in_json("dense_was_faster")
    def _dense_at(self) -> tuple[Mapping[str, int], ...]:
        return tuple(self.tuning.sizes[index] for index in self.dense_was_faster)

    def document(self) -> doc.Document:
        """Return what it says."""
        columns: list[doc.Column | str] = ["layer", "was", "is", *choices_text.ms_columns()]
        tuning, title = self.tuning, "layers"
        if tuning.source != "given":
            several = ", mean as the inputs weigh" if len(tuning.sizes) > 1 else ""
            sizes = "; ".join(map(choices_text.sizes_text, tuning.sizes))
            threads = choices_text.threads_text(tuning)
            title += f", {tuning.clock} time of a run{several}, {threads}, at {sizes}"
        rows = list(map(self._row, range(len(self.layers))))
        columns += ["#gain", "#predicted gain"]
        table = doc.Table(title, columns, rows, most_rows=choices_text.MOST_ROWS)
        answer = self._answer()
        facts = [
            doc.Fact(f"layers, {mode}", str(number)) for mode, number in self._chosen().items()
        ]
        if self.model_ratio is not None:
            low, high = 1 / self.model_ratio.high, 1 / self.model_ratio.low
            note = f"of every layer dense (95 %: {low:.3g}x to {high:.3g}x)"
            facts.append(
                doc.Fact("speed of the whole model", f"{1 / self.model_ratio.value:.3g}x", note)
            )
        speeds = time_drawings.model_speeds(tuning, self.model_ratios)
        measured = time_drawings.measured_times(self.layers, tuning)
        speed = time_drawings.speed_section(self.speed)
        return doc.Document(
            "tune",
            (*speeds, *measured, *speed, table),
            doc.Verdict("TUNED" if self.written else "DRY RUN", None, f"{answer}.", (answer,)),
            tuple(facts),
            tuple(self._lines()),
            warning=self.kernels.warning,
        )

    def _answer(self) -> str:
        """Return `2 sparse, 1 dense; whole model: 1.31x as fast as with every layer dense`."""
        text = ", ".join(f"{number} {choice}" for choice, number in self._chosen().items())
        text = text or "no layer to choose for"
        if self.tuning.undecided:
            text += f"; {len(self.tuning.undecided)} of them unsure, so as predicted"
        if self.model_ratio is not None:
            speed = choices_text.ratio_text(self.model_ratio, choices_text.OTHERS["dense"])
            text += f"; whole model {speed}"
        return text

    def _chosen(self) -> Counter[str | None]:
        """Count the layers of each mode."""
        return Counter(pkg.choice_text(layer) for layer in self.layers if layer.choice)

    def _layer(self, index: int) -> TunedLayer:
        layer = self.layers[index]
        return TunedLayer(
            path=layer.path,
            before=pkg.choice_text(self.before[index]),
            asked=pkg.asked_choice(layer, self.asked),
            choice=layer.choice,
            ranges=layer.ranges,
            measured_ms=choices_text.measured_ms(self.tuning, index),
            measured_gain=choices_text.measured_gain(layer, self.tuning, index),
            predicted_gain=self.predicted_gains[index],
            undecided=layer.path in self.tuning.undecided,
        )

    def _row(self, index: int) -> tuple[doc.Cell, ...]:
        layer, ms = self.layers[index], choices_text.measured_ms(self.tuning, index)
        choices = pkg.choice_text(self.before[index]), pkg.choice_text(layer)
        return (
            layer.path,
            *choices,
            *choices_text.ms_cells(ms),
            choices_text.measured_gain_text(layer, self.tuning, index),
            choices_text.times_text(self.predicted_gains[index]),
        )

    def _lines(self) -> Iterator[str]:
        if self.tuning.source == "measured":
            yield from choices_text.other_winners(self.layers, self.tuning)
            yield from choices_text.undecided_lines(self.tuning)
            yield from choices_text.boundary_lines(self.layers, self.tuning)
            yield from self._model_lines()
        # What `all` asked of layers that do not have it.
        fallbacks: dict[tuple[str, str], list[str]] = {}
        for layer in self.layers:
            asked = pkg.asked_choice(layer, self.asked)
            if asked is not None and layer.choice is not None and layer.choice != asked:
                fallbacks.setdefault((asked, layer.choice), []).append(layer.path)
        for (asked, choice), names in fallbacks.items():
            yield f"{choice}, as these layers cannot be {asked}: {', '.join(names)}"
        unreplaced = [layer for layer in self.layers if not pkg.choices_for(layer)]
        for reason in reasons(unreplaced):
            yield f"not replaced, so there is nothing to choose: {reason}"
        yield f"compared with the original model: max abs error {self.max_abs_error:.3g}"
        for name, tokens in self.flipped_tokens.items():
            yield (
                f"outputs on {name} were not compared with those before: {count(tokens, 'token')}"
                " chose other heads, as ties within rounding do"
            )
        yield self.kernels.describe()
        yield f"written to {self.package}" if self.written else "dry run: nothing was written"

    def _model_lines(self) -> Iterator[str]:
        """Yield what was measured of the whole model, and of each of several sizes."""
        everywhere = len(self.dense_was_faster) == len(self.tuning.sizes)
        text = "every layer is fastest densely; nothing to compare"
        if self.model_ratio is not None:
            text = choices_text.ratio_text(self.model_ratio, "with every layer dense")
            text += " with these layers sparse; so every layer stays dense" if everywhere else ""
        yield f"whole model: {text}"
        if self.ranges_did_not_pay:
            yield "with a choice for each range of sizes it was nowhere faster: one choice a layer"
        if not everywhere:
            for index in self.dense_was_faster:
                there = choices_text.sizes_text(self.tuning.sizes[index])
                yield f"at {there} it was slower with these layers sparse; so they are dense there"
        if len(self.model_ratios) < 2:
            return
        for sizes, ratios in zip(self.tuning.sizes, self.model_ratios, strict=True):
            texts = [
                choices_text.ratio_text(ratio, choices_text.OTHERS[name])
                for name, ratio in ratios.items()
            ]
            yield f"whole model at {choices_text.sizes_text(sizes)}: {'; '.join(texts)}"
