"""Compare the tokens that two models generate: where the first ones part, and by how little."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from moh_deploy.report.json import in_json
from moh_deploy.runtime.text.decoding import DecodedStep
from moh_deploy.validate.tolerances import rule_name, tolerance_for


@dataclass(frozen=True)
class TokenDifference:
    """The first token of a text that is another one.

    Attributes:
        prompt: Number of the prompt, from 1.
        position: How many tokens of the text are equal before it.
        token: The token here.
        expected: The reference's.
        margin: By how much the reference's logit of its token exceeds that of the other.
        allowed: How far logits may be off, by rounding alone: below twice that nothing is decided.
    """

    prompt: int
    position: int
    token: int
    expected: int
    margin: float
    allowed: float

    @property
    @in_json("explained")
    def is_near_tie(self) -> bool:
        """Whether rounding alone may have chosen."""
        return self.margin <= 2 * self.allowed


class TokenComparison:
    """Compares steps as they come; a row is looked at up to its first difference.

    Args:
        reference: Steps of the reference, in order; of a text they may be fewer or more.
        precision: Of the model that is compared: says what rounding may move.
    """

    def __init__(self, reference: Iterable[DecodedStep], precision: str) -> None:
        self._reference = iter(reference)
        self._relative = tolerance_for(rule_name(precision))
        self.differences: list[TokenDifference] = []
        self.compared = 0

    def add(self, step: DecodedStep, position: int) -> None:
        """Compare one step with the reference's next one."""
        expected = next(self._reference, None)
        parted = {one.prompt for one in self.differences}
        for row, token in enumerate(step.tokens):
            known = None if expected is None else expected.tokens[row]
            if row + 1 in parted or token is None or known is None or expected is None:
                continue
            self.compared += 1
            if token != known:
                logits = expected.logits[row]
                # Tokens that the model rules out (-inf, or the least number) say nothing of size.
                seen = logits[logits > np.finfo(np.float16).min]
                self.differences.append(
                    TokenDifference(
                        prompt=row + 1,
                        position=position,
                        token=token,
                        expected=known,
                        margin=float(logits[known] - logits[token]),
                        allowed=self._relative.limit(float(np.abs(seen).max(initial=0.0))),
                    )
                )
