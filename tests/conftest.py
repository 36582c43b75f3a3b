"""What makes many small models quick, interrupts heard and a busy machine no failure.

None of it changes a result.
"""

from __future__ import annotations

import gc
import signal
import sys
from collections.abc import Iterator

import pytest
from hypothesis import settings

# A drawn example may be slow: on a busy machine, and the first one, which loads what it needs.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


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


@pytest.fixture(scope="session", autouse=True)
def _interrupts_are_heard() -> Iterator[None]:
    """A background job of a shell ignores SIGINT, under nohup SIGHUP; children inherit that."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    ignored = [one for one in usual if signal.getsignal(one) is signal.SIG_IGN]
    for one in ignored:
        signal.signal(one, usual[one])
    yield
    for one in ignored:
        signal.signal(one, signal.SIG_IGN)
