"""`reference.json`: the routing of traffic that is known to be good, and how far chance strays."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field, TypeAdapter

from moh_deploy.config.strict_json import Strict, decode_strict
from moh_deploy.errors import ConfigError
from moh_deploy.package import Manifest, OnnxPackage
from moh_deploy.runtime.base import Runner
from moh_deploy.serving.drift.distances import KEPT_IN, by_layer, limits, statistics_of
from moh_deploy.serving.telemetry import routing
from moh_deploy.serving.telemetry.routing import RecordedWindow, WindowAbout
from moh_deploy.system.bounded_json import read_json
from moh_deploy.system.npz import Array
from moh_deploy.system.replaceable import FileKind
from moh_deploy.system.staging import staged_file
from moh_deploy.validate.reference.input_sets import batch_dim, picked
from moh_deploy.validate.reference.samples import Sample


def record_requests(
    package: OnnxPackage,
    reader: routing.RoutingReader,
    runner: Runner,
    requests: Iterator[dict[str, Array]],
) -> RecordedWindow:
    """Run requests one by one, and count what the routers did with each.

    Raises:
        ConfigError: A request does not fit the model.
        BackendError: The runtime failed.
    """
    rows, seconds = [np.zeros((0, reader.layout.width))], []
    for inputs in requests:
        results = runner.run_returning(inputs, reader.names)
        rows.append(reader.count(inputs, results, (1,)))
        seconds.append(time.time())
    about = WindowAbout(package.manifest.files["model.onnx"], reader.layout.layers)
    counts = np.concatenate(rows)
    return RecordedWindow(about, counts, np.ones(len(counts), np.int64), np.array(seconds))


def requests_of(
    manifest: Manifest, files: Sequence[Sample], size: int
) -> Iterator[dict[str, Array]]:
    """Yield the inputs of files, cut into requests of so many samples.

    Files of a model without a dimension of samples are a request each. Samples that are left over
    at the end of a file make no request.
    """
    dim = batch_dim(manifest)
    for file in files:
        inputs = dict(file.known.inputs)
        if dim is None:
            yield inputs
            continue
        for start in range(0, file.known.sizes[dim] - size + 1, size):
            yield picked(manifest.inputs, inputs, dim, range(start, start + size))


# A limit that one window in a thousand exceeds cannot be told from fewer requests.
FEWEST_REQUESTS = 100

_FORMAT = 1
_Count = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class LayerProfile(Strict):
    """The routing of one layer."""

    layer: routing.CountedLayer
    tokens: _Count  # that it routed
    on: tuple[_Count, ...]  # for each head, tokens that it was on for
    mass: tuple[_Count, ...]  # for each head, the sum of its gates' absolute values
    margins: tuple[_Count, ...]  # how many choices were as clear as each bin of `MARGIN_EDGES` says


@dataclass(frozen=True)
class LayerLimits(Strict):
    """The largest distances of one layer that count as chance; see `distances`."""

    load: _Count  # of the layer, as all but `heads`
    active: _Count
    mass: _Count
    heads: tuple[_Count, ...]  # of the share of tokens that each head is on for
    shared: _Count | None = None  # None where the layer has no shared heads, or these only
    margin: _Count | None = None  # None where margins cannot be read


@dataclass(frozen=True)
class WindowLimits(Strict):
    """The limits for windows of one size."""

    # Of the window; they hold for larger ones, too, which chance moves less.
    requests: Annotated[int, Field(ge=1)]
    layers: tuple[LayerLimits, ...]


@dataclass(frozen=True)
class RoutingReference(Strict):
    """The profile of a package's routing."""

    digest: str  # of the model.onnx that it is of
    requests: Annotated[int, Field(ge=1)]  # how many were recorded
    layers: tuple[LayerProfile, ...]  # what they were routed to
    # The share of windows of unchanged traffic that may alarm.
    false_alarms: Annotated[float, Field(gt=0, lt=1)]
    confidence: float  # in this share of references that is kept
    limits: tuple[WindowLimits, ...]  # for windows of several sizes, ascending
    format_version: int = _FORMAT

    @property
    def layout(self) -> routing.CountLayout:
        """The columns of its counts."""
        return routing.CountLayout(tuple(profile.layer for profile in self.layers))

    @property
    def totals(self) -> routing.Counts:
        """Its counts as one row."""
        layout = self.layout
        row = np.zeros(layout.width)
        for columns, profile in zip(layout.columns, self.layers, strict=True):
            row[columns.tokens] = profile.tokens
            row[columns.on], row[columns.mass] = profile.on, profile.mass
            row[columns.margins] = profile.margins
        return row

    def require_of(self, digest: str, source: str) -> None:
        """Refuse counts of a package that this is no reference of.

        Args:
            digest: Of the package's model.onnx.
            source: Where the counts are from; it opens the error message.

        Raises:
            ConfigError: It is another one.
        """
        if digest != self.digest:
            raise ConfigError(
                f"{source} is of another package than the reference: digest {digest[:12]}, the"
                f" reference's is {self.digest[:12]}.",
                hint="`moh-deploy profile` makes a reference of the package that is served.",
            )

    def limits_for(self, requests: int) -> WindowLimits | None:
        """Return the limits for a window of so many requests; None if it is too small."""
        fitting = [window for window in self.limits if window.requests <= requests]
        return fitting[-1] if fitting else None


def profile_of(
    recorded: RecordedWindow, *, window: int, rate: float, seed: int = 0
) -> RoutingReference:
    """Make a reference of recorded requests.

    Args:
        window: Requests of the smallest window that will be judged. Larger ones have limits of
            their own, up to four times what was recorded: from there on it is the reference that
            is not known better.

    Raises:
        ConfigError: There are too few requests, no layers, or gates that are no numbers.
    """
    layout, requests = recorded.layout, int(recorded.requests.sum())
    if not layout.layers:
        raise ConfigError("the package has no MoH layer whose gates change: nothing can drift.")
    if requests < FEWEST_REQUESTS or len(recorded.rows) < FEWEST_REQUESTS:
        raise ConfigError(
            f"a reference of {requests} requests in {len(recorded.rows)} runs was asked for,"
            f" expected {FEWEST_REQUESTS} or more that can be told apart.",
            hint="Record more, or cut inputs into smaller requests.",
        )
    totals = recorded.rows.sum(axis=0)
    bad = [columns.layer.path for columns in layout.columns if totals[columns.nonfinite]]
    if bad:
        raise ConfigError(
            f"gates of {', '.join(bad)} are NaN or infinite: such traffic is no reference."
        )
    sizes = [window]
    while sizes[-1] * 2 <= 4 * requests:
        sizes.append(sizes[-1] * 2)
    windows = []
    for size in sizes:
        rows = max(1, round(size * len(recorded.rows) / requests))
        far = limits(layout, recorded.rows, rows, rate=rate, seed=seed)
        layers = [LayerLimits(**of_layer, heads=heads) for of_layer, heads in by_layer(layout, far)]
        windows.append(WindowLimits(size, tuple(layers)))
    return RoutingReference(
        digest=recorded.about.digest,
        requests=requests,
        layers=tuple(
            LayerProfile(
                columns.layer,
                float(totals[columns.tokens]),
                *(
                    tuple(totals[part].tolist())
                    for part in (columns.on, columns.mass, columns.margins)
                ),
            )
            for columns in layout.columns
        ),
        false_alarms=rate,
        confidence=KEPT_IN,
        limits=tuple(windows),
    )


def read_reference(path: Path) -> RoutingReference:
    """Read a reference of routing, `reference.json`.

    Raises:
        ConfigError: It is missing, none, of another version, or contradicts itself.
    """
    hint = "`moh-deploy profile` writes a reference."
    try:
        content = read_json(path, error=ConfigError)
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist.", hint=hint) from error
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != _FORMAT:
        raise ConfigError(
            f"{path} is no reference of format version {_FORMAT}: got {version}.", hint=hint
        )
    found = decode_strict(
        RoutingReference, content, f"{path} is no reference", error=ConfigError, hint=hint
    )
    problem = _contradiction(found)
    if problem is not None:
        raise ConfigError(f"{path}: {problem}.", hint=hint)
    return found


def _contradiction(reference: RoutingReference) -> str | None:
    """Return what in a reference does not fit the rest of it."""
    sizes = [window.requests for window in reference.limits]
    if not sizes or sizes != sorted(set(sizes)):
        return f"limits are of {sizes} requests, expected ascending sizes"
    for profile in reference.layers:
        heads = profile.layer.num_heads
        counts = (len(profile.on), len(profile.mass), len(profile.margins))
        if counts != (heads, heads, len(routing.MARGIN_EDGES)):
            return f"layer '{profile.layer.path}' contradicts itself"
    for window in reference.limits:
        if len(window.layers) != len(reference.layers):
            return f"limits are of {len(window.layers)} layers"
        for profile, of_layer in zip(reference.layers, window.layers, strict=True):
            names = statistics_of(profile.layer)
            missing = [name for name in names if getattr(of_layer, name) is None]
            if len(of_layer.heads) != profile.layer.num_heads:
                missing.append("head")
            if missing:
                return f"a limit of {missing[0]} is missing"
    return None


REFERENCE_FILE = FileKind.beginning_with(
    "reference of `moh-deploy profile`", rb'\{\s*"digest":.*"requests":'
)


def write_reference(path: Path, reference: RoutingReference) -> None:
    """Write a reference of routing, `reference.json`.

    Raises:
        PackageError: It cannot be written.
    """
    with staged_file(path) as partial:
        partial.write_bytes(TypeAdapter(RoutingReference).dump_json(reference, indent=1) + b"\n")
