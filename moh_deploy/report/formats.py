"""Where a part of a report is shown."""

from __future__ import annotations

from typing import Literal

# A comment on a pull request is read in a narrow column and draws nothing; a terminal has room for
# more columns, and draws nothing either; a page has both, and folds what few will read.
Format = Literal["terminal", "markdown", "page"]
EVERYWHERE = frozenset[Format](("terminal", "markdown", "page"))
TEXT = frozenset[Format](("terminal", "markdown"))
ROOMY = frozenset[Format](("terminal", "page"))
NOT_TERMINAL = frozenset[Format](("markdown", "page"))
PAGE = frozenset[Format](("page",))
