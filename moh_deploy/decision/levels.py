"""Levels of tests: shared among several arms by Holm, and among several looks by spending."""

from __future__ import annotations

import math
from collections.abc import Mapping

from moh_deploy.decision.students_t import normal_point


def level_of_look(level: float, look: int, looks: int) -> float:
    """Return how much of a level one look may spend; all looks together spend the level.

    Little at first: who looks early and often has to see much. The sum holds however the data of
    the looks depend on each other, so no look has to have a certain amount of them.

    Args:
        level: One-sided, of all looks together.
        look: From 1.
        looks: How many the plan allows.

    Source: Lan & DeMets, Biometrika 70 (1983): the spending function in the manner of O'Brien and
    Fleming, a(t) = 2 - 2 Phi(z / sqrt(t)) with a(1) = level. Each look is tested at what it adds.
    """

    def spent(share: float) -> float:
        # 2 - 2 Phi(x) = erfc(x / sqrt(2)), which is no 0 where Phi(x) rounds to 1.
        return math.erfc(normal_point(level / 2) / math.sqrt(2 * share)) if share else 0.0

    return spent(look / looks) - spent((look - 1) / looks)


def shown_by_holm(p_values: Mapping[str, float], level: float) -> dict[str, bool]:
    """Return which claims are shown, so that any wrong one is among them at the level at most.

    Args:
        p_values: Name of a claim to the probability of such data were it not true.
        level: Of all claims together.

    Source: Holm, Scandinavian Journal of Statistics 6 (1979).
    """
    shown = dict.fromkeys(p_values, False)
    # The smallest has to pass level / m, the next level / (m - 1), until one does not.
    for index, name in enumerate(sorted(p_values, key=lambda p_value: p_values[p_value])):
        if p_values[name] > level / (len(p_values) - index):
            break
        shown[name] = True
    return shown
