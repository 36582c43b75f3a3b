"""The files that costs are made of, with round numbers that can be worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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
    spread: float = 0.1,
    paired: float = 0.02,
    **whole: Any,
) -> dict[str, Any]:
    """Return what `compare --json` prints, as far as costs need it.

    Args:
        ms: Times of each arm at each of the sizes; the first is the reference.
        verdicts: Of arms that do not win.
        dense: Arms that compute every head.
        sizes: At which they were measured.
        spread: Half the interval of a time, as a share of it.
        paired: Half the interval of a gain.
        whole: What is replaced.
    """
    ms = ms or {"dense": (10.0, 40.0), "moh": (8.0, 20.0)}
    reference = next(iter(ms))
    arms = [_arm(name, ms, reference, sizes, spread, paired, name in dense) for name in ms]
    for one in arms:
        one["verdict"] = (verdicts or {}).get(one["name"], one["verdict"])
    return {
        "schema_version": 1,
        "plan_digest": "0" * 64,
        "reference": reference,
        "quantile": 0.5,
        "machine": "a processor with 2 cores",
        "arms": arms,
        "would_do": [],
        **whole,
    }


def _arm(
    name: str,
    ms: dict[str, tuple[float, ...]],
    reference: str,
    sizes: tuple[dict[str, int], ...],
    spread: float,
    paired: float,
    is_dense: bool,
) -> dict[str, Any]:
    gains = [1 - ours / theirs for ours, theirs in zip(ms[name], ms[reference], strict=True)]
    return {
        "name": name,
        "verdict": "reference" if name == reference else "win",
        "dense": is_dense,
        "is_bound": False,
        "latency": [
            {
                "sizes": size,
                "samples": size.get("batch", 1),
                "p50_ms": time,
                "p50_low_ms": time * (1 - spread),
                "p50_high_ms": time * (1 + spread),
                "throughput_per_s": 1e3 * size.get("batch", 1) / time,
                "energy_mj": None,
            }
            for size, time in zip(sizes, ms[name], strict=True)
        ],
        "promises": []
        if name == reference
        else [
            {"kind": "latency", "estimate": gain, "low": gain - paired, "high": gain + paired}
            for gain in gains
        ],
    }


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
