"""The result of one edge case."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

CaseStatus = Literal["passed", "failed", "not applicable", "not run"]
Kind = Literal["routing", "input", "corpus"]


@dataclass(frozen=True)
class CaseResult:
    """One case, at one place.

    Attributes:
        kind: `routing`: logits were put in front of routers. `input`: the model was given these
            inputs. `corpus`: inputs that are kept in the package.
        case: Its name, such as `ties` or `one: seq=1`.
        place: The path of a layer, or `model outputs`.
        status: `not applicable`: there is no such case for this model. `not run`: there is, and
            nobody knows the answer.
        detail: What failed, or why it did not run; what was compared if it passed.
    """

    kind: Kind
    case: str
    place: str
    status: CaseStatus
    detail: str


MODEL = "model outputs"


def input_result(case: str, status: CaseStatus, detail: str) -> CaseResult:
    """Return the result of a case in which the model was given inputs."""
    return CaseResult("input", case, MODEL, status, detail)
