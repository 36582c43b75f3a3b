"""The files that costs are made of, with round numbers that can be worked out by hand, and a
report of them.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from moh_deploy.decision.cost.price_alternatives import Decided, places_of, price_alternatives
from moh_deploy.decision.cost.prices import Prices, SizedRequests, Traffic
from moh_deploy.decision.cost.report import CostReport
from moh_deploy.validate.reference.differences import Float64Array

PRICES = """\
machine: {name: c7i.2xlarge, per_hour: 3.60 USD, utilization: 0.5}
engineering: {days: 10, per_day: 800 USD}
"""

SIZES = ({"batch": 1}, {"batch": 8})


def decision(
    ms: dict[str, tuple[float, ...]] | None = None,
    *,
    verdicts: dict[str, str] | None = None,
    dense: tuple[str, ...] = ("dense",),
    sizes: tuple[dict[str, int], ...] = SIZES,
    spread: float = 0.0,
    paired: float = 0.0,
    **whole: Any,
) -> dict[str, Any]:
    """Return what `compare --json` prints, as far as costs need it.

    Args:
        ms: Times of each alternative at each of the sizes; the first is the reference.
        verdicts: Of alternatives that do not win.
        dense: Alternatives that compute every head.
        sizes: At which they were measured.
        spread: About half the interval of a time, as a share of it, by what disturbs all
            alternatives.
        paired: About half the interval of a gain.
        whole: What is replaced.
    """
    ms = ms or {"dense": (10.0, 40.0), "moh": (8.0, 20.0)}
    reference = next(iter(ms))
    alternatives = [
        _alternative(name, ms, reference, sizes, spread, paired, name in dense) for name in ms
    ]
    for alternative in alternatives:
        alternative["verdict"] = (verdicts or {}).get(alternative["name"], alternative["verdict"])
    return {
        "schema_version": 1,
        "plan_digest": "0" * 64,
        "reference": reference,
        "confidence": 0.95,
        "machine": "a processor with 2 cores",
        "arms": alternatives,
        "would_do": [],
        **whole,
    }


def _alternative(
    name: str,
    ms: dict[str, tuple[float, ...]],
    reference: str,
    sizes: tuple[dict[str, int], ...],
    spread: float,
    paired: float,
    is_dense: bool,
) -> dict[str, Any]:
    shared, own = _noise(0), _noise(1 + list(ms).index(name))
    # Of 40 blocks the interval of a mean is as wide as their standard deviation, about.
    blocks = 1 + 2 * spread * shared + 2 * paired / math.sqrt(2) * own
    return {
        "name": name,
        "verdict": "reference" if name == reference else "win",
        "dense": is_dense,
        "is_bound": False,
        "latency": [
            {
                "sizes": size,
                "p50_ms": time,
                "block_means_ms": (time * blocks).tolist(),
                "energy_mj": None,
            }
            for size, time in zip(sizes, ms[name], strict=True)
        ],
    }


def _noise(seed: int) -> Float64Array:
    """Return numbers of mean 0 and variance 1."""
    found = np.random.default_rng(seed).standard_normal(40)
    return (found - found.mean()) / found.std()


def write(
    folder: Path,
    *,
    decided: dict[str, Any] | None = None,
    prices: str = PRICES,
    traffic: str = "batch,count\n1,750000\n8,250000\n",
) -> tuple[Path, Path, Path]:
    """Write all three files."""
    paths = folder / "decision.json", folder / "prices.yaml", folder / "traffic.csv"
    texts = json.dumps(decided or decision()), prices, traffic
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    return paths


def cost_report(per_month: float = 1e8, *, name: str = "moh", paired: float = 0.02) -> CostReport:
    """Return a report of a dense reference and one alternative.

    Args:
        per_month: Requests.
        name: Of the alternative.
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
    return price_alternatives(
        decided, prices, traffic, places_of(requests, decided.sizes, between=False)
    )
