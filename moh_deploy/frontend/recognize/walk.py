"""Walk over a graph of operators."""

from collections.abc import Callable, Iterable, Iterator

from torch.fx import Node


def walk(start: Node, onward: Callable[[Node], Iterable[Node]]) -> Iterator[Node]:
    """Yield nodes breadth first, each once, from `start` on.

    Args:
        onward: Which nodes follow a node that was yielded.
    """
    seen, queue = {start: None}, [start]
    # The list grows while it is read: what is nearest to the start comes first.
    for node in queue:
        yield node
        fresh = dict.fromkeys(other for other in onward(node) if other not in seen)
        seen.update(fresh)
        queue += fresh
