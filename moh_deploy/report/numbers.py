"""How numbers look in reports."""

import math

from moh_deploy.report.document import Cell, Share, Status


def percent(share: float | None) -> str | None:
    """Return `62.5 %`."""
    return None if share is None else f"{100 * share:.1f} %"


def count(number: int, noun: str) -> str:
    """Return `1 layer` or `3 layers`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def figure(value: float | None) -> str | None:
    """Return a measured number to three digits."""
    return None if value is None else f"{value:.3g}"


def amount(value: float) -> str:
    """Return three digits, and all that stand before the point: `1 234`."""
    return f"{value:,.0f}".replace(",", " ") if abs(value) >= 1000 else f"{value:.3g}"


def number(value: float | None) -> str | None:
    """Return the same for a page, where what is none is called so."""
    if value is None:
        return None
    if math.isnan(value):
        return "NaN"
    return f"{value:.3g}" if math.isfinite(value) else ("∞" if value > 0 else "-∞")


def share(value: float | None, *, digits: int = 1) -> str | None:
    """Return `62.5 %`; all and none are said of all and none only."""
    if value is None or not 0 <= value <= 1:
        return number(value)
    if value in (0, 1):
        return f"{100 * value:.0f} %"
    # 99.97 % of decisions are not all of them, and are not to look like it after rounding.
    step = 10.0**-digits
    percent = round(100 * value, digits)
    if percent == 100:
        return f">{100 - step:.{digits}f} %"
    if percent == 0:
        return f"<{step:.{digits}f} %"
    return f"{percent:.{digits}f} %"


def si(value: int | None) -> str | None:
    """Return a large count with its SI prefix, `1.5 G`, to put a unit behind."""
    if value is None:
        return None
    scaled, prefixes = float(value), iter(" kMGTP")
    prefix = next(prefixes)
    while scaled >= 1000 and prefix != "P":
        scaled, prefix = scaled / 1000, next(prefixes)
    return f"{scaled:.3g} {prefix.strip()}"


def plain(cell: Cell) -> str:
    """Return the text of a table's cell where there are letters only; None becomes a dash."""
    if isinstance(cell, Share):
        cell = percent(cell.value)
    if cell is None:
        return "-"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, float):
        return f"{cell:.3g}"
    return cell.text if isinstance(cell, Status) else str(cell)
