"""`reference.json`: the routing of traffic that is known to be good, and how far chance strays."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from moh_deploy.config.strict_json import Strict
from moh_deploy.errors import ConfigError
from moh_deploy.serving.drift.calibrate import KEPT_IN, limits
from moh_deploy.serving.drift.distances import Quantity, quantities
from moh_deploy.serving.telemetry.layout import MARGIN_EDGES, CountedLayer, CountLayout
from moh_deploy.serving.telemetry.routing import Counts
from moh_deploy.serving.telemetry.window import RecordedWindow
from moh_deploy.system.bounded_json import read_json
from moh_deploy.system.replaceable import FileKind
from moh_deploy.system.staging import staged_file

FEWEST_REQUESTS = 100
"""A limit that one window in a thousand exceeds cannot be told from fewer requests."""

_FORMAT = 1
_Count = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class LayerProfile(Strict):
    """The routing of one layer.

    Attributes:
        layer: The layer.
        tokens: That it routed.
        on: For each head, tokens that it was on for.
        mass: For each head, the sum of its gates' absolute values.
        margins: How many choices were as clear as each bin of `MARGIN_EDGES` says.
    """

    layer: CountedLayer
    tokens: _Count
    on: tuple[_Count, ...]
    mass: tuple[_Count, ...]
    margins: tuple[_Count, ...]


@dataclass(frozen=True)
class LayerLimits(Strict):
    """The largest distances of one layer that count as chance; see `distances`.

    Attributes:
        load: Of the layer, as all but `heads`.
        heads: Of the share of tokens that each head is on for.
        shared: None where the layer has no shared heads, or these only.
        margin: None where margins cannot be read.
    """

    load: _Count
    active: _Count
    mass: _Count
    heads: tuple[_Count, ...]
    shared: _Count | None = None
    margin: _Count | None = None

    def of(self, one: Quantity) -> float:
        """Return the limit of one distance."""
        if one.head is not None:
            return self.heads[one.head]
        found: float = getattr(self, one.statistic)
        return found


@dataclass(frozen=True)
class WindowLimits(Strict):
    """The limits for windows of one size.

    Attributes:
        requests: Of the window; they hold for larger ones, too, which chance moves less.
        layers: Of each layer.
    """

    requests: Annotated[int, Field(ge=1)]
    layers: tuple[LayerLimits, ...]


@dataclass(frozen=True)
class RoutingReference(Strict):
    """The profile of a package's routing.

    Attributes:
        digest: Of the model.onnx that it is of.
        requests: How many were recorded.
        layers: What they were routed to.
        false_alarms: The share of windows of unchanged traffic that may alarm.
        confidence: In this share of references that is kept.
        limits: For windows of several sizes, ascending.
        format_version: Of the file.
    """

    digest: str
    requests: Annotated[int, Field(ge=1)]
    layers: tuple[LayerProfile, ...]
    false_alarms: Annotated[float, Field(gt=0, lt=1)]
    confidence: float
    limits: tuple[WindowLimits, ...]
    format_version: int = _FORMAT

    @property
    def layout(self) -> CountLayout:
        """The columns of its counts."""
        return CountLayout(tuple(one.layer for one in self.layers))

    @property
    def totals(self) -> Counts:
        """Its counts as one row."""
        layout = self.layout
        row = np.zeros(layout.width)
        for columns, profile in zip(layout.columns, self.layers, strict=True):
            row[columns.tokens] = profile.tokens
            row[columns.on], row[columns.mass] = profile.on, profile.mass
            row[columns.margins] = profile.margins
        return row

    def limits_for(self, requests: int) -> WindowLimits | None:
        """Return the limits for a window of so many requests; None if it is too small."""
        fitting = [one for one in self.limits if one.requests <= requests]
        return fitting[-1] if fitting else None


def profile_of(
    recorded: RecordedWindow, *, window: int, rate: float, seed: int = 0
) -> RoutingReference:
    """Make a reference of recorded requests.

    Args:
        recorded: The counts of each.
        window: Requests of the smallest window that will be judged. Larger ones have limits of
            their own, up to four times what was recorded: from there on it is the reference that
            is not known better.
        rate: Of false alarms.
        seed: Of the drawing.

    Raises:
        ConfigError: There are too few requests, no layers, or gates that are no numbers.
    """
    layout, requests = recorded.layout, int(recorded.requests.sum())
    _check(recorded, layout, requests)
    totals = recorded.rows.sum(axis=0)
    sizes = [window]
    while sizes[-1] * 2 <= 4 * requests:
        sizes.append(sizes[-1] * 2)
    per_row = requests / len(recorded.rows)
    return RoutingReference(
        digest=recorded.about.digest,
        requests=requests,
        layers=tuple(
            LayerProfile(
                one.layer,
                float(totals[one.tokens]),
                tuple(totals[one.on].tolist()),
                tuple(totals[one.mass].tolist()),
                tuple(totals[one.margins].tolist()),
            )
            for one in layout.columns
        ),
        false_alarms=rate,
        confidence=KEPT_IN,
        limits=tuple(
            WindowLimits(size, _limits_of(recorded, max(1, round(size / per_row)), rate, seed))
            for size in sizes
        ),
    )


def read_reference(path: Path) -> RoutingReference:
    """Read `reference.json`.

    Raises:
        ConfigError: It is missing, none, of another version, or contradicts itself.
    """
    try:
        content = read_json(path, error=ConfigError)
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path} does not exist.", hint="`moh-deploy profile` writes a reference."
        ) from error
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != _FORMAT:
        raise ConfigError(
            f"{path} is no reference of format version {_FORMAT}: got {version}.",
            hint="`moh-deploy profile` writes a reference.",
        )
    try:
        found = _adapter().validate_json(json.dumps(content))
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"]))
        raise ConfigError(
            f"{path} is no reference: {place}: {problem['msg']}.",
            hint="`moh-deploy profile` writes a reference.",
        ) from error
    _check_sense(path, found)
    return found


REFERENCE_FILE = FileKind.beginning_with(
    "reference of `moh-deploy profile`", rb'\{\s*"digest":.*"requests":'
)


def write_reference(path: Path, reference: RoutingReference) -> None:
    """Write `reference.json`.

    Raises:
        PackageError: It cannot be written.
    """
    with staged_file(path) as partial:
        partial.write_bytes(_adapter().dump_json(reference, indent=1) + b"\n")


@cache
def _adapter() -> TypeAdapter[RoutingReference]:
    return TypeAdapter(RoutingReference)


def _check(recorded: RecordedWindow, layout: CountLayout, requests: int) -> None:
    if not layout.layers:
        raise ConfigError("the package has no MoH layer whose gates change: nothing can drift.")
    if requests < FEWEST_REQUESTS or len(recorded.rows) < FEWEST_REQUESTS:
        raise ConfigError(
            f"a reference of {requests} requests in {len(recorded.rows)} runs was asked for,"
            f" expected {FEWEST_REQUESTS} or more that can be told apart.",
            hint="Record more, or cut inputs into smaller requests.",
        )
    bad = [one.layer.path for one in layout.columns if recorded.rows[:, one.nonfinite].any()]
    if bad:
        raise ConfigError(
            f"gates of {', '.join(bad)} are NaN or infinite: such traffic is no reference."
        )


def _limits_of(
    recorded: RecordedWindow, rows: int, rate: float, seed: int
) -> tuple[LayerLimits, ...]:
    layout = recorded.layout
    far = limits(layout, recorded.rows, rows, rate=rate, seed=seed)
    by_layer: list[dict[str, float]] = [{} for _ in layout.layers]
    heads: list[list[float]] = [[] for _ in layout.layers]
    for one, limit in zip(quantities(layout), far.tolist(), strict=True):
        if one.head is None:
            by_layer[one.layer][one.statistic] = limit
        else:
            heads[one.layer].append(limit)
    return tuple(
        LayerLimits(
            found["load"],
            found["active"],
            found["mass"],
            tuple(of_heads),
            found.get("shared"),
            found.get("margin"),
        )
        for found, of_heads in zip(by_layer, heads, strict=True)
    )


def _check_sense(path: Path, reference: RoutingReference) -> None:
    sizes = [one.requests for one in reference.limits]
    if not sizes or sizes != sorted(set(sizes)):
        raise ConfigError(f"{path}: limits are of {sizes} requests, expected ascending sizes.")
    for profile in reference.layers:
        heads = profile.layer.num_heads
        counts = (len(profile.on), len(profile.mass), len(profile.margins))
        if counts != (heads, heads, len(MARGIN_EDGES)):
            raise ConfigError(f"{path}: layer '{profile.layer.path}' contradicts itself.")
    wanted = quantities(reference.layout)
    for one in reference.limits:
        if len(one.layers) != len(reference.layers):
            raise ConfigError(f"{path}: limits are of {len(one.layers)} layers.")
        for each in wanted:
            layer = one.layers[each.layer]
            is_there = (
                each.head < len(layer.heads)
                if each.head is not None
                else getattr(layer, each.statistic) is not None
            )
            if not is_there:
                raise ConfigError(f"{path}: a limit of {each.statistic} is missing.")
