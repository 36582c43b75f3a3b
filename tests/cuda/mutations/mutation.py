"""A planted bug: what it changes, and which cases must notice."""

from dataclasses import dataclass

from tests.cuda.libraries import PLAIN, Variant

WRONG = r"out of tolerance|differs at|is not exactly 0"
"""What the judge of the contract says of an output."""
CRASHED = "ended by signal"
RACE = "ThreadSanitizer: data race"
BEYOND = "AddressSanitizer: .*buffer-overflow|AddressSanitizer: .*poison"
DAMAGED = "written to"
"""What the harness says of bytes outside of an output or workspace."""
SYMPTOMS = {
    "wrong": WRONG,
    "crashed": CRASHED,
    "race": RACE,
    "beyond": BEYOND,
    "damaged": DAMAGED,
}
"""Their names in the tables; any other text stands for itself."""


class TextNotFound(Exception):
    """A mutation no longer fits the sources: the text says which, and what to do."""


@dataclass(frozen=True)
class Mutation:
    """A bug that somebody could write.

    Attributes:
        name: What is wrong, unique in its table.
        file: The source, below plugins/cuda.
        before: Text that the file has exactly once.
        after: What stands there instead.
        op: Whose cases must notice.
        units: The sources in plugins/cuda/launch that are compiled again: those that the cases run.
        cases: A regular expression: names of the cases that notice, each in one of `dtypes`.
        dtypes: The same for their dtypes.
        options: Of `tests.cuda.run_cases`.
        symptom: A regular expression: what the run says.
        variant: How it is built: with a sanitizer if nothing else can see it.
    """

    name: str
    file: str
    before: str
    after: str
    op: str
    units: tuple[str, ...]
    cases: str
    dtypes: str = "float16"
    options: tuple[str, ...] = ("--seeds", "1", "2", "--late-copies", "1")
    symptom: str = WRONG
    variant: Variant = PLAIN

    def __str__(self) -> str:
        return f"{self.op}: {self.name}"

    def match(self) -> str:
        """Return the regular expression of the cases."""
        return f"^{self.op}/({self.cases})/({self.dtypes})$"

    def plant(self, text: str) -> str:
        """Return the text of the source with the bug in it.

        Raises:
            TextNotFound: It does not have `before` exactly once.
        """
        count = text.count(self.before)
        if count != 1:
            raise TextNotFound(
                f"{self}: plugins/cuda/{self.file} has this text {count} times; expected once. "
                f"Write the bug anew for the present source:\n{self.before}"
            )
        return text.replace(self.before, self.after)
