"""The line of the user's code that a node was traced from, for reasons that users read."""

from __future__ import annotations

import re
from pathlib import Path

from torch.fx import Node

from moh_deploy.frontend.fx.graph import op

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')


def named(node: Node) -> str:
    """Return what a reason calls an operator: `tanh (models/attention.py:88)`."""
    place = source_line(node)
    return op(node) if place is None else f"{op(node)} ({place})"


def source_line(node: Node) -> str | None:
    """Return `models/attention.py:88`; None where the trace does not say.

    The file is told from its directory on: a package does not say where its author keeps things.
    """
    # torch: the outermost call comes first, and lines of torch itself may follow those of the user.
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    users = [frame for frame in frames if "/torch/" not in frame[0]]
    if not users:
        return None
    path, line = users[-1]
    return f"{'/'.join(Path(path).parts[-2:]).lstrip('/')}:{line}"
