"""The process that builds: `python -m moh_deploy.runtime.tensorrt.worker FLAVOUR DESCRIPTOR`.

It has TensorRT to itself: its parser and builder may abort. What it has to say goes to the file
descriptor, as messages; what TensorRT logs, to stderr.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from moh_deploy.errors import BackendError
from moh_deploy.runtime.tensorrt import messages
from moh_deploy.runtime.tensorrt.builder import BuildFailed, BuildSession, build_engine
from moh_deploy.runtime.tensorrt.device_work import (
    DeviceWork,
    RunRefused,
    bound,
    tensor_dtype,
    time_in_turns,
)
from moh_deploy.runtime.tensorrt.flavour import FLAVOURS, Flavour
from moh_deploy.system.npz import Array
from moh_deploy.system.nvidia_driver import read_driver

_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


def main(flavour_name: str, descriptor: str) -> None:
    if sys.platform == "linux":
        # It is to end with its parent: the engine would have no taker.
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
        except BuildFailed as error:
            tell(messages.Failure(str(error)))


def _serve(flavour: Flavour, tell: Callable[[messages.Message], None]) -> None:
    trt = import_module(flavour.module)
    # Before a request is read: what is there decides whether anything has to be built at all.
    tell(messages.Stack(trt.__version__, *(() if flavour.targets else _gpu())))
    session = BuildSession(trt)
    for line in sys.stdin:  # until the parent closes it
        request = messages.decode(line)
        if isinstance(request, messages.TimingRequest):
            tell(time_networks(session, request, tell))
        else:
            assert isinstance(request, messages.BuildRequest)
            tell(build_engine(session, request, tell))


def _gpu() -> tuple[str, ...]:
    """Return name and compute capability of the first GPU, and the driver's CUDA version."""
    try:
        driver = read_driver()
    except BackendError:  # TensorRT says it in its own words when it is to build.
        return ()
    return driver.gpus[0].name, driver.gpus[0].dotted, driver.cuda


# A graph is to be long beside what a launch costs, and short beside a round.
_GRAPH_MS, _MOST_CAPTURED_RUNS = 1.0, 32
# Lengths are held within the keys that there are.
_ALL_KEYS = 1 << 30


def time_networks(
    session: BuildSession, request: messages.TimingRequest, tell: Callable[[messages.Message], None]
) -> messages.TimingAnswer:
    """Build each network, and time them in turns at the usual sizes of every profile.

    A network that cannot be built or run has no time; the others have.
    """
    runtime = session.trt.Runtime(session.logger)
    failed: dict[str, str] = {}
    engines: dict[str, Any] = {}
    for name, build in request.networks.items():
        try:
            answer = build_engine(session, build, tell)
            if answer.errors:
                refused = ", ".join(f"{error.operator}: {error.text}" for error in answer.errors)
                raise BuildFailed(f"the parser refuses {refused}")
            assert build.engine is not None
            engine = runtime.deserialize_cuda_engine(Path(build.engine).read_bytes())
            if engine is None:
                raise BuildFailed("TensorRT cannot load what it built")
            engines[name] = engine
        except BuildFailed as error:
            failed[name] = str(error)
    if not engines:
        return messages.TimingAnswer({}, failed)
    tell(messages.BuildStep(f"timing {', '.join(engines)}"))
    try:
        with DeviceWork() as gpu:
            times = _times(engines, request, gpu, failed)
    except BackendError as error:
        return messages.TimingAnswer({}, failed | dict.fromkeys(engines, error.message))
    return messages.TimingAnswer(times, failed)


def _times(
    engines: dict[str, Any],
    request: messages.TimingRequest,
    gpu: DeviceWork,
    failed: dict[str, str],
) -> dict[str, tuple[float, ...]]:
    """Return the times of each profile; an engine that does not run moves to `failed`."""
    profiles = next(iter(request.networks.values())).profiles
    found: list[dict[str, float]] = []
    for index in range(max(1, len(profiles))):
        # A network without dynamic sizes has no profile.
        shapes = {name: shape[1] for name, shape in profiles[index].items()} if profiles else {}
        with gpu.scope():
            feeds = _feeds(next(iter(engines.values())), request, shapes)
            # One copy of the inputs for all: they only read it.
            given = {name: (array.shape, gpu.upload(array)) for name, array in feeds.items()}
            calls: dict[str, Callable[[], None]] = {}
            runs: dict[str, int] = {}
            for name, engine in list(engines.items()):
                try:
                    run = bound(engine, index, given, gpu)
                    gpu.elapsed_ms(run, 1)  # scores of float32 may be more than the memory
                    one_ms = max(gpu.elapsed_ms(run, 1), 1e-6)
                    runs[name] = max(1, min(_MOST_CAPTURED_RUNS, round(_GRAPH_MS / one_ms)))
                    calls[name] = gpu.captured(run, runs[name])
                except (RunRefused, BackendError) as error:
                    failed[name] = error.message if isinstance(error, BackendError) else str(error)
                    del engines[name]
            if not engines:
                return {}
            times = time_in_turns(calls, gpu.elapsed_ms)
            found.append({name: times[name] / runs[name] for name in calls})
    return {name: tuple(times[name] for times in found) for name in engines}


def _feeds(
    engine: Any, request: messages.TimingRequest, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Array]:
    """Return arrays for the inputs, of the usual sizes of a profile: the same ones each time."""
    rng, feeds = np.random.default_rng(0), {}
    for name, fill in request.fills.items():
        shape = shapes.get(name) or tuple(engine.get_tensor_shape(name))
        array: Array
        if fill == "random":
            array = rng.standard_normal(shape)
        elif fill == "gates":
            array = rng.random(shape) < request.open_share
        else:
            values = {"filled": _ALL_KEYS, "seen": 1, "ranges": (0, _ALL_KEYS), "zero": 0}
            array = np.broadcast_to(np.array(values[fill]), shape)
        feeds[name] = array.astype(tensor_dtype(engine, name))
    return feeds


if __name__ == "__main__":
    main(*sys.argv[1:])
