"""Special values in the inputs of a case, by name, put there in place."""

from collections.abc import Callable
from typing import Any

import numpy as np

Edit = Callable[[dict[str, np.ndarray]], None]


def put(name: str, place: Any, value: object) -> Edit:
    """Put a value at a place of an input; `np.s_[...]` writes a place."""

    def edit(inputs: dict[str, np.ndarray]) -> None:
        inputs[name][place] = value

    return edit


def times(name: str, factor: float) -> Edit:
    return lambda inputs: np.multiply(inputs[name], factor, out=inputs[name])


def plus(name: str, addend: float) -> Edit:
    return lambda inputs: np.add(inputs[name], addend, out=inputs[name])


def in_order(*edits: Edit) -> Edit:
    def edit(inputs: dict[str, np.ndarray]) -> None:
        for step in edits:
            step(inputs)

    return edit
