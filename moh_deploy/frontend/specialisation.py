"""Find where in the user's code a dynamic dimension became a number while it was traced."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.fx.experimental.symbolic_shapes import ShapeEnv

_NOT_THE_USERS = (str(Path(torch.__file__).parent), str(Path(__file__).parent), "<")


@contextlib.contextmanager
def watch_specialisations() -> Iterator[dict[str, str]]:
    """Yield a mapping of what sizes became, `5` or `10 - s94`, to the line of code that did it.

    Torch does not tell. Its own bookkeeping is listened to where it has the form known here;
    elsewhere the mapping stays empty.
    """
    found: dict[str, str] = {}
    original = getattr(ShapeEnv, "_set_replacement", None)
    if original is None:
        yield found
        return

    def listen(self: ShapeEnv, symbol: Any, target: Any, *rest: Any) -> Any:
        if not getattr(target, "is_Symbol", True):
            found.setdefault(str(target), _users_line() or "")
        return original(self, symbol, target, *rest)

    ShapeEnv._set_replacement = listen  # type: ignore[assignment, method-assign]
    try:
        yield found
    finally:
        ShapeEnv._set_replacement = original  # type: ignore[method-assign]


def _users_line() -> str | None:
    frames: list[tuple[FrameType, int]] = list(traceback.walk_stack(None))
    for frame, line in frames:  # innermost first
        path = frame.f_code.co_filename
        if not path.startswith(_NOT_THE_USERS) and "site-packages" not in path:
            return f"{path}:{line} in {frame.f_code.co_name}"
    return None
