"""Reports of costs, of made-up data."""

from __future__ import annotations

import yaml

from moh_deploy.decision.cost.decided import Decided
from moh_deploy.decision.cost.price_arms import places_of, price_arms
from moh_deploy.decision.cost.prices import Prices
from moh_deploy.decision.cost.report import CostReport
from moh_deploy.decision.cost.traffic import SizedRequests, Traffic
from tests.decision.cost.files import PRICES, SIZES, decision


def cost_report(per_month: float = 1e8, *, name: str = "moh", paired: float = 0.02) -> CostReport:
    """Return a report of a dense reference and one arm.

    Args:
        per_month: Requests.
        name: Of the arm.
        paired: About half the interval of its gain.
    """
    decided = Decided.model_validate(
        decision(
            {"dense": (10.0, 40.0), name: (8.0, 41.0)},
            paired=paired,
            break_even=[
                {"arm": name, "rival": "dense", "outcome": "slower from batch 7.2 on (6 to 8)"}
            ],
        )
    )
    requests = tuple(SizedRequests(sizes, 0.5) for sizes in SIZES)
    prices = Prices.model_validate(yaml.safe_load(PRICES))
    traffic = Traffic(requests, per_month, ("A month is extrapolated from 2 days of traffic.",))
    return price_arms(decided, prices, traffic, places_of(requests, decided.sizes, between=False))
