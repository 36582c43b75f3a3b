"""Price the alternatives of a decision for the traffic of a team, and say whether one pays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from moh_deploy.decision.cost.predicted import predicted_break_even, tuned_break_even
from moh_deploy.decision.cost.price_alternatives import places_of, price_alternatives, read_decided
from moh_deploy.decision.cost.prices import read_prices, read_traffic
from moh_deploy.decision.cost.report import CostReport
from moh_deploy.package import OnnxPackage


def cost(
    decision: Path | str,
    *,
    prices: Path | str,
    traffic: Path | str,
    days: float | None = None,
    extrapolate: bool = False,
    package: Path | str | None = None,
) -> CostReport:
    """Weigh the times of a decision by traffic, and price them. Nothing is timed.

        report = moh_deploy.cost("decision.json", prices="prices.yaml", traffic="traffic.csv")
        report.decision

    Args:
        decision: What `moh-deploy compare --json` printed.
        prices: YAML file, see `moh_deploy.decision.cost.prices.Prices`.
        traffic: CSV file with a column for each dimension, and `count` or `timestamp`.
        days: How many days the traffic is of; without, a month for counts, and what its timestamps
            span for a log.
        extrapolate: Take sizes of traffic that lie between two measured ones from their times.
        package: Predict for this package where skipping heads breaks even: by layer, in batch size
            and in the share of open heads; and say where `tune` measured it to.

    Raises:
        ConfigError: A file is not of its form, or traffic has sizes that were not measured.
        PackageError: Not a package, or one that has changed since it was written.
        BackendError: ONNX Runtime cannot load it.
    """
    decided, priced = read_decided(Path(decision)), read_prices(Path(prices))
    asked = read_traffic(Path(traffic), list(decided.sizes[0]), days=days)
    places = places_of(asked.requests, decided.sizes, between=extrapolate)
    report = price_alternatives(decided, priced, asked, places)
    if decided.sha256 is None:
        note = f"{decision} is of an earlier version and has no digest: an edit of it is not seen."
        report = replace(report, notes=(*report.notes, note))
    if package is None:
        return report
    opened = OnnxPackage.open(package)
    predicted = predicted_break_even(opened, asked.requests)
    return replace(report, predicted=predicted, tuned=tuned_break_even(opened.manifest))
