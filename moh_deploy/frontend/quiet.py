"""Keep torch from printing what the user can do nothing about."""

import contextlib
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def muted(*loggers: str, below: int) -> Iterator[None]:
    """Mute loggers below a level; failures still reach us as exceptions."""
    levels = {logging.getLogger(name): logging.getLogger(name).level for name in loggers}
    for logger in levels:
        logger.setLevel(below)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


@contextlib.contextmanager
def no_advice() -> Iterator[None]:
    """Mute warnings, and what is logged below an error: a model's own code runs, whose authors
    alone can follow what libraries advise them to.
    """
    before = logging.root.manager.disable
    # Of all loggers: libraries make theirs, and set their levels, while they are imported.
    logging.disable(max(before, logging.WARNING))
    try:
        with no_warnings():
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def no_warnings() -> Iterator[None]:
    """Mute warnings within a block."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
