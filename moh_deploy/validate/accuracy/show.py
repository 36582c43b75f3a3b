"""Write values of a metric in a sentence: shares in percent, differences of them in points."""

from __future__ import annotations


def shown(metric: str, value: float) -> str:
    """Return `97.78 %`, or a number to five digits."""
    return f"{100 * value:.2f} %" if _is_share(metric) else f"{value:.5g}"


def shown_gap(metric: str, *values: float) -> str:
    """Return `0.50 points`, or `-0.30 to 0.50 points` for two; numbers alone for other metrics."""
    if _is_share(metric):
        return f"{' to '.join(f'{100 * value:.2f}' for value in values)} points"
    return " to ".join(f"{value:.3g}" for value in values)


def _is_share(metric: str) -> bool:
    return metric.startswith("top-")
