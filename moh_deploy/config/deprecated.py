"""Names of the last release that are still understood: docs/deprecations.md lists them."""

from typing import NamedTuple


class Deprecated(NamedTuple):
    """A name that has another one now; the old one goes with release `gone_in`."""

    old: str  # a value such as `fp16`, or an option such as `--old`
    new: str
    since: str
    gone_in: str

    @property
    def message(self) -> str:
        return (
            f"'{self.old}' is called '{self.new}' since {self.since}; {self.gone_in} refuses the"
            " old name."
        )


DEPRECATED = {
    item.old: item
    for item in (
        Deprecated("fp32", "float32", since="0.2", gone_in="0.3"),
        Deprecated("fp16", "float16", since="0.2", gone_in="0.3"),
        Deprecated("bf16", "bfloat16", since="0.2", gone_in="0.3"),
    )
}
