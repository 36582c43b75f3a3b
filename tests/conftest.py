from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def _imported_modules_are_not_searched_for_garbage() -> Iterator[None]:
    """Tracing sets off hundreds of collections; each would walk all of torch for nothing."""
    gc.freeze()
    yield
    gc.unfreeze()
