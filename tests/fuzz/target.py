"""What is fuzzed: a reader, what it is given, and what may come out."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hypothesis.strategies import SearchStrategy

from moh_deploy.errors import MoHDeployError

Answer = Literal["read", "refused"]

_LONGEST_MESSAGE = 20_000


@dataclass(frozen=True)
class Prepared:
    """A reader with a place to read from.

    Attributes:
        inputs: Draws what to give it.
        read: Writes that, and reads it.
    """

    inputs: SearchStrategy[Any]
    read: Callable[[Any], object]

    def answer(self, drawn: object) -> Answer:
        """Return what the reader did.

        Raises:
            Exception: Anything but an error that is raised on purpose: a bug.
        """
        try:
            self.read(drawn)
        except MoHDeployError as error:
            message = error.message
        else:
            return "read"
        assert message, "an error that says nothing"
        assert len(message) < _LONGEST_MESSAGE, "an error that nobody reads to the end"
        return "refused"


Target = Callable[[Path], Prepared]
"""Makes a valid input in an empty folder, and strategies to change it."""
