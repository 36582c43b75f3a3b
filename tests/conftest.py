"""What makes tracing many small models quick; none of it changes a result."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def _garbage_is_collected_rarely() -> Iterator[None]:
    """Tracing sets off thousands of collections, and each would walk all of torch for nothing."""
    thresholds = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def _torch_expects_small_models() -> Iterator[None]:
    """Models this small lose more time to handing work over to threads than they gain."""
    if "torch" not in sys.modules:  # no test of this run needs it
        yield
        return
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
