"""The process that builds: `python -m moh_deploy.runtime.tensorrt.worker FLAVOUR DESCRIPTOR`.

It has TensorRT to itself: its parser and builder may abort. What it has to say goes to the file
descriptor, as messages; what TensorRT logs, to stderr.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from importlib import import_module

from moh_deploy.errors import BackendError
from moh_deploy.runtime.tensorrt import builder, messages, network_timing
from moh_deploy.runtime.tensorrt.flavour import FLAVOURS, Flavour
from moh_deploy.system.nvidia_driver import read_driver

_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


def main(flavour_name: str, descriptor: str) -> None:
    if sys.platform == "linux":
        # It is to end with its parent: nobody would take what is built.
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    with os.fdopen(int(descriptor), "w", encoding="utf-8") as channel:

        def tell(message: messages.Message) -> None:
            channel.write(messages.encode(message))
            channel.flush()

        try:
            _serve(FLAVOURS[flavour_name], tell)
        # As number and text, from which the other process raises an OSError of its own.
        except OSError as error:
            tell(messages.Failure(f"{error.strerror}: {error.filename}", error.errno))
        except builder.BuildFailed as error:
            tell(messages.Failure(str(error)))


def _serve(flavour: Flavour, tell: Callable[[messages.Message], None]) -> None:
    trt = import_module(flavour.module)
    # Before a request is read: what is there decides whether anything has to be built at all.
    tell(messages.Stack(trt.__version__, *(() if flavour.targets else _gpu())))
    session = builder.BuildSession(trt)
    for line in sys.stdin:  # until nobody wants anything more
        request = messages.decode(line)
        if isinstance(request, messages.TimingRequest):
            tell(network_timing.time_networks(session, request, tell))
        else:
            assert isinstance(request, messages.BuildRequest)
            tell(builder.build_engine(session, request, tell))


def _gpu() -> tuple[str, ...]:
    """Return name and compute capability of the first GPU, and the driver's CUDA version."""
    try:
        driver = read_driver()
    except BackendError:  # TensorRT says it in its own words when it is to build.
        return ()
    return driver.gpus[0].name, driver.gpus[0].dotted, driver.cuda


if __name__ == "__main__":
    main(*sys.argv[1:])
