"""Serve a package over HTTP, for a laptop and for tests."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moh_deploy.config.dtypes import Runtime
from moh_deploy.errors import BackendError, ConfigError
from moh_deploy.serving.api.bundle import DEFAULT_GUARD
from moh_deploy.serving.http.queue import MIB, HttpLimits
from moh_deploy.serving.served_model import cores
from moh_deploy.serving.settings import ServingSettings, check_numbers
from moh_deploy.serving.source import require_own_code
from moh_deploy.serving.triton.bundle_json import bundled_model, is_bundle

if TYPE_CHECKING:
    from moh_deploy.serving.http.server import Listening

_SHORTEST_S = 0.001
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


_NEEDED = ("starlette", "uvicorn", "prometheus_client")


def serve(
    package_dir: Path | str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    name: str | None = None,
    runtime: Runtime | None = None,
    instances: int | None = None,
    threads: int | None = None,
    max_batch: int | None = None,
    max_delay_ms: float | None = None,
    sample_every: int | None = None,
    per_head: bool = False,
    otlp: str | None = None,
    reference: Path | str | None = None,
    guard: Path | str | None = None,
    audit_log: Path | str | None = None,
    control: Path | str | None = None,
    drill: bool = False,
    shadow: Path | str | None = None,
    shadow_share: float | None = None,
    trust_code: bool = False,
    max_queue: int = 256,
    max_body: int = 64,
    max_json: int = 4,
    longest: Mapping[str, int] | None = None,
    read_timeout: float = 20.0,
    request_timeout: float = 60.0,
    shutdown_timeout: float = 30.0,
    on_ready: Callable[[Listening], None] | None = None,
) -> None:
    """Serve a package, an engine or a bundle until SIGTERM or an interrupt.

    It speaks the Open Inference Protocol v2 (KServe, Triton), and shows metrics at /metrics. Has to
    be called in the main thread, which gets the signals.

    Args:
        package_dir: The package, the engine directory, or the bundle, which has settings of its own
            where the arguments are None or False.
        host: Address to listen at. Clients that reach it may ask: it has neither TLS nor passwords.
        port: Port; 0 for any that is free.
        name: What clients call the model; None for what the bundle says, or the
            name of its directory.
        runtime: `onnxruntime`, `openvino` or `onnxruntime-cuda`: what runs a package, and not those
            beside it; None for what it was tuned for, or else ONNX Runtime.
        instances: How many batches run at the same time.
        threads: Threads of each. If one is None, it follows from the other: together they are
            the cores of this machine, and one instance has them all.
        max_batch: The most samples that are joined into one batch; None for 64.
        max_delay_ms: How long the first request of a batch waits for others; None for 1.
        sample_every: Routing is read of one batch in so many; 0 reads none; None for 128.
        per_head: Count head by head, not by layer alone.
        otlp: Address of a collector of OpenTelemetry that metrics are sent to, too, by OTLP over
            HTTP: `http://collector:4318`.
        reference: Routing profile; metrics show how far live routing is from it.
        guard: The policy by which answers are judged, and by which a lower level answers where the
            first fails; `default` for kernels, then function bodies.
        audit_log: File that the guard's transitions are appended to.
        control: Control file of the guard: manual switch, alarms of drift.
        drill: Plant the faults that the control file names.
        shadow: Package to run beside, and compare; None for none.
        shadow_share: On which share of the batches; None for 0.05.
        trust_code: Run native code of a bundle that is not of this installation.
        max_queue: The most requests that wait for an instance.
        max_body: The largest body of a request, in MiB.
        max_json: The most JSON in a body, in MiB: to read it takes thirty times as much memory.
        longest: Dynamic dimension to its largest size in a request. A long sequence is a small
            body, but much work.
        read_timeout: How long a client may take to send a request, in seconds.
        request_timeout: How long a request waits for its answer, in seconds.
        shutdown_timeout: How long requests that have arrived are still answered at the end.
        on_ready: Is told where it listens, once it answers.

    Raises:
        ConfigError: An option is out of its range, the address cannot be listened at, or a bundle
            has native code that is not trusted.
        PackageError: It cannot be read, or a bundle's kernels or packages have changed.
        ValidationError: It answers a recorded run wrongly.
        BackendError: A package of the extra `serve` is not installed, the model cannot be run here,
            its process died again and again, or requests were not answered in time at the end.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise BackendError(
            f"not installed: {', '.join(missing)}.", hint="pip install 'moh-deploy[serve]'"
        )
    root = model = Path(package_dir).resolve()
    base = ServingSettings(root.name)
    if is_bundle(root):
        model, base = bundled_model(root)
        require_own_code(root, trust_code=trust_code)
    check_numbers(
        ("--instances", instances, 1),
        ("--threads", threads, 1),
        ("--max-batch", max_batch, 1),
        ("--max-delay-ms", max_delay_ms, 0),
        ("--sample-every", sample_every, 0),
        ("--max-queue", max_queue, 1),
        ("--max-body", max_body, 1),
        ("--max-json", max_json, 1),
        ("--read-timeout", read_timeout, _SHORTEST_S),
        ("--request-timeout", request_timeout, _SHORTEST_S),
        ("--shutdown-timeout", shutdown_timeout, _SHORTEST_S),
    )
    given: dict[str, Any] = {
        "name": name,
        "runtime": runtime,
        "instances": instances,
        "threads": threads,
        "max_batch": max_batch,
        "max_delay_ms": max_delay_ms,
        "sample_every": sample_every,
        "per_head": per_head or None,
        "otlp": otlp,
        "reference": _absolute(reference),
        "guard": None if guard is None else True,
        "policy": _absolute(guard),
        "audit_log": _absolute(audit_log),
        "control": _absolute(control),
        "drill": drill or None,
        "shadow": _absolute(shadow),
        "shadow_share": shadow_share,
    }
    if threads is not None and instances is None:
        given["instances"] = max(1, cores() // threads)
    changes = {key: value for key, value in given.items() if value is not None}
    settings = replace(base, **changes)
    if str(guard) == DEFAULT_GUARD:
        settings = replace(settings, policy=None)  # that of a bundle, too
    if not _NAME.fullmatch(settings.name):
        raise ConfigError(
            f"the model's name is '{settings.name}', expected letters, digits, '.', '_' and '-'.",
            hint="Give it another one: --name NAME.",
        )
    if not settings.guard and (settings.audit_log or settings.control or settings.drill):
        raise ConfigError(
            "--audit-log, --control and --drill are of a guard: give --guard default, too."
        )
    if settings.reference is not None and settings.sample_every == 0:
        raise ConfigError(
            "a reference is compared with routing that is read: --sample-every is 0.",
            hint="A bundle brings its reference along: its package can be served without.",
        )
    limits = HttpLimits(
        max_body_bytes=max_body * MIB,
        max_json_bytes=max_json * MIB,
        max_held_bytes=max(HttpLimits.max_held_bytes, 4 * max_body * MIB),
        max_waiting=max_queue,
        read_timeout_s=read_timeout,
        request_timeout_s=request_timeout,
        shutdown_timeout_s=shutdown_timeout,
        longest=dict(longest or {}),
    )
    from moh_deploy.serving.http.server import serve_forever
    from moh_deploy.serving.http.worker import WorkerTask

    serve_forever(
        WorkerTask(str(model), settings, limits, listener=0, parent=0),
        host=host,
        port=port,
        on_ready=on_ready or (lambda listening: None),
        log=lambda line: print(line, file=sys.stderr, flush=True),
    )


def _absolute(path: Path | str | None) -> str | None:
    return None if path is None else str(Path(path).resolve())
