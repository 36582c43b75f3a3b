"""Find a smallest set of items with which a test passes, in few tests.

A test that passes with some items passes with more of them: `find` relies on that, and `thin` looks
whether it was right. With k of n items needed, it takes about k * log2(n) tests.

Source: Junker, QuickXplain (2004), in its linear form: the last item of the shortest prefix that
passes is needed, whatever comes before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

_T = TypeVar("_T")


@dataclass(frozen=True)
class Found(Generic[_T]):
    """The result of a search.

    Attributes:
        items: A set that passes.
        smallest: Every item of it was shown to be needed. False where tests ran out before.
    """

    items: tuple[_T, ...]
    smallest: bool


@dataclass
class MinimalSet(Generic[_T]):
    """A search that asks at most so many tests.

    Attributes:
        passes: The test.
        most: How many tests it may take.
        asked: How many it took.
    """

    passes: Callable[[tuple[_T, ...]], bool]
    most: int
    asked: int = 0
    _known: dict[frozenset[_T], bool] = field(default_factory=dict)

    def find(self, items: Sequence[_T]) -> Found[_T]:
        """Return the needed ones of some items.

        Args:
            items: All of them together pass. Those that are likely to be needed come first: of two
                sets that would do, it is the one further in front that is found.
        """
        needed: tuple[_T, ...] = ()
        rest = tuple(items)
        while rest and self.asked < self.most:
            # What was found needed already passes: nothing of the rest is.
            if self._ask(needed):
                return self.thin(needed)
            # Invariant: the first `fails` of the rest do not pass, the first `enough` do.
            fails, enough = 0, len(rest)
            while enough - fails > 1 and self.asked < self.most:
                # Double the prefix until one passes, then halve: the likely items are in front.
                middle = max(2 * fails, 1)
                if enough < len(rest) or middle >= enough:
                    middle = (fails + enough) // 2
                if self._ask((*needed, *rest[:middle])):
                    enough = middle
                else:
                    fails = middle
            # Tests ran out inside the search: this prefix passes, but may be larger than needed.
            if enough - fails > 1:
                return Found((*needed, *rest[:enough]), smallest=False)
            # The item that tips a prefix over is needed; what comes behind it is not.
            needed, rest = (*needed, rest[enough - 1]), rest[: enough - 1]
        return self.thin((*needed, *rest))

    def thin(self, items: Sequence[_T]) -> Found[_T]:
        """Leave out items of a set that passes, until no single one can be spared."""
        kept = tuple(items)
        for item in items:
            if self.asked >= self.most:
                return Found(kept, smallest=False)
            # The search assumes that more items never hurt; here each item is left out in fact.
            without = tuple(entry for entry in kept if entry != item)
            if self._ask(without):
                kept = without
        return Found(kept, smallest=True)

    def _ask(self, items: tuple[_T, ...]) -> bool:
        key = frozenset(items)
        if key not in self._known:
            self.asked += 1
            self._known[key] = self.passes(items)
        return self._known[key]
