"""Judge a window of live traffic by a reference: which layers and heads moved, and how far."""

from dataclasses import dataclass

from moh_deploy.report.report import in_json, share
from moh_deploy.serving.drift.distances import OF_LAYERS, Statistic, by_layer, distances, loads
from moh_deploy.serving.drift.reference import RoutingReference
from moh_deploy.serving.telemetry.routing import Counts


@dataclass(frozen=True)
class Drift:
    """The distance of one number of a layer from the reference, beside its limit."""

    statistic: Statistic  # which, see `distances`
    distance: float
    limit: float  # what chance explains

    @property
    @in_json()
    def ratio(self) -> float:
        """The distance by its limit: above 1 it is no chance."""
        if self.limit > 0:
            return self.distance / self.limit
        return 0.0 if self.distance == 0 else float("inf")


@dataclass(frozen=True)
class LiveHead:
    """One head of a layer."""

    head: int
    live: float  # the share of tokens that it is on for
    reference: float  # the same in the reference
    limit: float  # how far the two may be apart by chance

    @property
    @in_json()
    def has_moved(self) -> bool:
        return abs(self.live - self.reference) > self.limit

    @property
    @in_json()
    def is_dead(self) -> bool:
        """Tell whether it is on for no token any more."""
        return self.has_moved and self.live == 0

    @property
    @in_json()
    def is_always_open(self) -> bool:
        """Tell whether it is on for every token now."""
        return self.has_moved and self.live == 1


@dataclass(frozen=True)
class LayerVerdict:
    """One layer in one window."""

    path: str
    num_shared_heads: int | None  # as in `CountedLayer`
    tokens: int  # that were read
    nonfinite: int  # gates that are NaN or infinite
    # Each distance that is known; `head` is that of the head that moved most.
    drifts: tuple[Drift, ...]
    heads: tuple[LiveHead, ...]  # every head; empty where counts of heads are not known

    @property
    @in_json()
    def ratio(self) -> float:
        """The largest distance by its limit."""
        return max((drift.ratio for drift in self.drifts), default=0.0)

    def alarms(self) -> tuple[str, ...]:
        """Return what is not as in the reference; nothing where all is chance."""
        if self.nonfinite:
            return (f"{self.path}: {self.nonfinite} gates are NaN or infinite",)
        if not self.tokens:
            return (f"{self.path}: no token was routed",)
        moved = [
            f"{_WORDS[drift.statistic]} moved by {drift.distance:.3g} (limit {drift.limit:.3g})"
            for drift in self.drifts
            if drift.ratio > 1 and drift.statistic != "head"
        ]
        for head in self.heads:
            if head.has_moved:
                kind = " is dead," if head.is_dead else ""
                kind = " is always open," if head.is_always_open else kind
                now, then = share(head.live), share(head.reference)
                moved.append(
                    f"head {head.head}{kind} is on for {now} of the tokens, was for {then}"
                )
        return (f"{self.path}: {'; '.join(moved)}",) if moved else ()


_WORDS: dict[Statistic, str] = {
    "load": "choices of heads",
    "active": "heads on for a token",
    "mass": "gate mass of heads",
    "shared": "gate mass of shared heads",
    "margin": "margins",
}


@dataclass(frozen=True)
class WindowVerdict:
    """One window of live traffic."""

    since: float  # when it begins, in seconds since 1970
    until: float
    requests: int  # whose routing was read
    # The size of windows that its limits are of; None where nothing was judged.
    limits_of: int | None
    layers: tuple[LayerVerdict, ...]  # every layer; empty without data
    no_data: str | None = None  # why there is nothing to judge; None where there is

    @property
    @in_json()
    def alarms(self) -> tuple[str, ...]:
        """Sentences on what is not as it should be; none where all is."""
        if self.no_data is not None:
            return (f"no data: {self.no_data}",)
        return tuple(alarm for layer in self.layers for alarm in layer.alarms())

    @property
    @in_json()
    def ratio(self) -> float | None:
        """The largest distance by its limit; None without data."""
        return max((layer.ratio for layer in self.layers), default=None)


@dataclass(frozen=True)
class LiveCounts:
    """The counts of a window."""

    totals: Counts  # summed rows, in the reference's layout
    requests: int  # of how many requests
    since: float  # when it begins, in seconds since 1970
    until: float
    # Heads were counted one by one; else what is of single heads is not looked at.
    per_head: bool = True
    no_data: str | None = None  # why nothing was counted; None where something was


def judge_window(reference: RoutingReference, live: LiveCounts) -> WindowVerdict:
    """Compare a window with the reference.

    A window that is larger than those that limits were calibrated for is judged by the limits of
    the next smaller size: chance moves it less, so false alarms are rarer and drift has to be
    larger than it need be. One that is smaller than all is not judged, which is an alarm.
    """
    limits, no_data = reference.limits_for(live.requests), live.no_data
    if limits is None and no_data is None:
        fewest = reference.limits[0].requests
        found = f"{live.requests} requests were read, limits hold from {fewest} on"
        no_data = found if live.requests else "no request was read"
    if limits is None or no_data is not None:
        return WindowVerdict(live.since, live.until, live.requests, None, (), no_data)
    layout, totals = reference.layout, reference.totals
    far = by_layer(layout, distances(layout, live.totals[None], totals)[0])
    layers = []
    for columns, limit, (of_layer, _) in zip(layout.columns, limits.layers, far, strict=True):
        known = [name for name in of_layer if live.per_head or name in OF_LAYERS]
        drifts = [Drift(name, of_layer[name], getattr(limit, name)) for name in known]
        heads: list[LiveHead] = []
        if live.per_head:
            now, then = loads(columns, live.totals).tolist(), loads(columns, totals).tolist()
            shares = zip(now, then, limit.heads, strict=True)
            heads = [LiveHead(head, *numbers) for head, numbers in enumerate(shares)]
            each = [Drift("head", abs(head.live - head.reference), head.limit) for head in heads]
            drifts.append(max(each, key=lambda drift: drift.ratio))
        layer = columns.layer.path, columns.layer.num_shared_heads
        counted = round(live.totals[columns.tokens]), round(live.totals[columns.nonfinite])
        layers.append(LayerVerdict(*layer, *counted, tuple(drifts), tuple(heads)))
    return WindowVerdict(live.since, live.until, live.requests, limits.requests, tuple(layers))
