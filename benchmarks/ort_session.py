"""Sessions of ONNX Runtime as the benchmarks use them: quiet, and without threads that spin."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import onnxruntime as ort

from moh_deploy.errors import MoHDeployError
from moh_deploy.runtime.kernel_use import KernelUse
from moh_deploy.runtime.layer_runs import LayerImpl
from moh_deploy.runtime.onnxruntime.session import Placement, register

_ERRORS_ONLY = 3


class Unusable(Exception):
    """A candidate cannot run here; the message says why."""


def plain_session(
    model: bytes | Path, *, threads: int, profile: Path | None = None
) -> ort.InferenceSession:
    """Load a model without kernels: MoH nodes run as their function bodies.

    Args:
        profile: Where to write how long each node takes, without the end of the file's name.

    Raises:
        Unusable: ONNX Runtime refuses it.
    """
    return _create(model, _options(threads, profile))


def kernel_session(
    model: bytes | Path,
    nodes: Sequence[str],
    kernel: KernelUse,
    *,
    threads: int,
    profile: Path | None = None,
) -> tuple[ort.InferenceSession, dict[str, LayerImpl]]:
    """Load a model with the kernel library.

    Args:
        nodes: Names of the model's nodes of domain moh, moh.2, ...

    Returns:
        The session, and what runs each of the nodes, as read from it.

    Raises:
        Unusable: ONNX Runtime refuses the model or the library.
    """
    options = _options(threads, profile)
    with tempfile.TemporaryDirectory() as scratch:
        placement = Placement(nodes, Path(scratch))
        placement.prepare(options)
        try:
            register(kernel, options)
        except MoHDeployError as error:
            raise Unusable(str(error)) from error
        session = _create(model, options)
        return session, placement.read(session)


def _options(threads: int, profile: Path | None) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.intra_op_num_threads = threads
    # A thread that spins while it waits would count as work, and get in the way of the next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    return options


def _create(model: bytes | Path, options: ort.SessionOptions) -> ort.InferenceSession:
    content = str(model) if isinstance(model, Path) else model
    try:
        return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no common base class but this.
        raise Unusable(" ".join(str(error).split())) from error
