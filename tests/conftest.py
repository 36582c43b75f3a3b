"""What makes tracing many small models quick; none of it changes a result."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def _imported_modules_are_not_searched_for_garbage() -> Iterator[None]:
    """Tracing sets off hundreds of collections; each would walk all of torch for nothing."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def _torch_expects_small_models() -> Iterator[None]:
    """One thread, and no cache of fake tensors: filling it pays in deep models only."""
    if "torch" not in sys.modules:  # no test of this run needs it
        yield
        return
    import torch
    import torch._dynamo.config

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch._dynamo.config.patch(fake_tensor_cache_enabled=False):
        yield
    torch.set_num_threads(threads)
