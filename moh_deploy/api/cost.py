"""Price the arms of a decision for the traffic of a team, and say whether one pays."""

from __future__ import annotations

from pathlib import Path

from moh_deploy.decision.cost.decided import read_decided
from moh_deploy.decision.cost.price_arms import price_arms
from moh_deploy.decision.cost.prices import read_prices
from moh_deploy.decision.cost.report import CostReport
from moh_deploy.decision.cost.run_times import places_of
from moh_deploy.decision.cost.traffic import read_traffic


def cost(
    decision: Path | str,
    *,
    prices: Path | str,
    traffic: Path | str,
    days: float | None = None,
    extrapolate: bool = False,
) -> CostReport:
    """Weigh the times of a decision by traffic, and price them. Nothing is run.

        report = moh_deploy.cost("decision.json", prices="prices.yaml", traffic="traffic.csv")
        report.decision

    Args:
        decision: What `moh-deploy compare --json` printed.
        prices: YAML file, see `moh_deploy.decision.cost.prices.Prices`.
        traffic: CSV file with a column for each dimension, and `count` or `timestamp`.
        days: How many days the traffic is of; without, a month for counts, and what its timestamps
            span for a log.
        extrapolate: Take sizes of traffic that lie between two measured ones from their times.

    Raises:
        ConfigError: A file is not of its form, or traffic has sizes that were not measured.
    """
    decided, priced = read_decided(Path(decision)), read_prices(Path(prices))
    asked = read_traffic(Path(traffic), list(decided.sizes[0]), days=days)
    places = places_of(asked.requests, decided.sizes, between=extrapolate)
    return price_arms(decided, priced, asked, places)
