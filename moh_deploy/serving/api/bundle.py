"""Write a package or engine as a directory that an inference server loads, and check one."""

from __future__ import annotations

import re
from pathlib import Path

from moh_deploy.errors import ConfigError
from moh_deploy.runtime.open_runner import find_deployed
from moh_deploy.serving.settings import ServingSettings, check_numbers
from moh_deploy.serving.telemetry.otlp import check_endpoint
from moh_deploy.serving.triton.bundle import write_bundle
from moh_deploy.serving.triton.bundle_json import Backend, BundleReport
from moh_deploy.serving.triton.check import BundleCheck, examine_bundle
from moh_deploy.system.progress import Progress, SilentProgress
from moh_deploy.validate.compare.parity import require_equal

DEFAULT_GUARD = "default"


def bundle(
    artefact: Path | str,
    output: Path | str,
    *,
    target: str = "triton",
    backend: Backend | None = None,
    name: str | None = None,
    instances: int = 1,
    threads: int | None = None,
    max_batch: int = 64,
    max_delay_ms: float = 1.0,
    sample_every: int = 128,
    per_head: bool = False,
    otlp: str | None = None,
    guard: Path | str | None = None,
    fallback: Path | str | None = None,
    shadow: Path | str | None = None,
    shadow_share: float = 0.05,
    drill: bool = False,
    reference: Path | str | None = None,
    image: str | None = None,
    storage: str | None = None,
    progress: Progress | None = None,
) -> BundleReport:
    """Write a bundle: the model, its configuration, kernels, dashboards and alert rules.

    Args:
        artefact: A package or an engine directory.
        output: The directory to write; an earlier bundle is replaced.
        target: The server; `triton` is the only one.
        backend: The backend of the server: `python` runs a package by moh-deploy, with telemetry
            and kernels; `tensorrt` runs an engine, which no server has done yet. None: the one
            for the artefact.
        name: What clients call the model; None: the directory's name.
        instances: How many batches run at the same time.
        threads: Threads of each instance; None: the machine's cores by the instances.
        max_batch: The most samples in a batch.
        max_delay_ms: How long the first request of a batch waits for others.
        sample_every: Routing is read of one batch in so many; 0 reads none.
        per_head: Count head by head, not by layer alone.
        otlp: Address of a collector of OpenTelemetry that the backend `python` sends metrics to,
            by OTLP over HTTP: `http://collector:4318`.
        guard: The policy by which answers are judged, and by which a lower level answers where the
            first fails; `default` for kernels, then function bodies; None: no guard.
        fallback: The package of the policy's level of kind `package`, in place of its `path`.
        shadow: A package that is run beside on a share of the batches, and compared.
        shadow_share: That share.
        drill: Let the guard's control file plant faults: for a rehearsal, never in production.
        reference: A routing profile to bring along: metrics show how far live routing is from it.
        image: The container for KServe.
        storage: Where KServe finds the bundle: `pvc://models/digits`.
        progress: What to report steps to.

    Raises:
        ConfigError: An option is not for this model, or Triton has no tensors of a dtype of it.
        PackageError: Not a package or engine, or one that has changed; or it cannot be written.
        ValidationError: `verify` refuses the package, or one beside it.
    """
    progress = progress or SilentProgress()
    if target != "triton":
        raise ConfigError(
            f"target is '{target}', expected triton.",
            hint="moh_deploy.bundle_for_genai writes bundles for onnxruntime-genai.",
        )
    if not 0 < shadow_share <= 1:
        raise ConfigError(f"shadow_share is {shadow_share:g}, expected more than 0, and 1 at most.")
    check_numbers(
        ("instances", instances, 1),
        ("threads", threads, 1),
        ("max_batch", max_batch, 1),
        ("max_delay_ms", max_delay_ms, 0),
        ("sample_every", sample_every, 0),
    )
    directory = re.sub(r"[^A-Za-z0-9_.-]", "-", Path(artefact).resolve().name)
    settings = ServingSettings(
        name=name or directory.strip(".-") or "model",
        instances=instances,
        threads=threads,
        max_batch=max_batch,
        max_delay_ms=max_delay_ms,
        sample_every=sample_every,
        per_head=per_head,
        otlp=otlp,
        drill=drill,
        shadow_share=shadow_share,
        guard=guard is not None,
        policy=None if guard is None or Path(guard) == Path(DEFAULT_GUARD) else str(guard),
        shadow=None if shadow is None else str(shadow),
        reference=None if reference is None else str(reference),
    )
    if drill and guard is None:
        raise ConfigError(
            "drill is for a guard, and none is given.", hint="Give one: --guard default."
        )
    if otlp is not None:
        check_endpoint(otlp)
    if reference is not None and sample_every == 0:
        raise ConfigError("reference is compared with routing that is read: sample_every is 0.")
    model = find_deployed(artefact)
    if not model.is_compiled:
        with progress.step("comparing the package with the original model"):
            require_equal(model.made_from(None))
    with progress.step("writing the bundle"):
        written = write_bundle(
            model,
            Path(output),
            settings,
            backend=backend,
            fallback=None if fallback is None else Path(fallback),
            image=image,
            storage=storage,
        )
    return BundleReport.of(Path(output), written)


def check_bundle(root: Path | str, *, server: Path | str | None = None) -> BundleCheck:
    """Say why a server on this machine would not load a bundle, without starting one.

    Args:
        root: The bundle.
        server: Where the server is: the folder with `bin/tritonserver`, or an environment with
            `nvidia-pytriton`; None: what is installed.

    Returns:
        What was found. Look at `failure`: None if nothing stands against loading it.

    Raises:
        PackageError: It is no bundle, or `bundle.json` has changed.
    """
    return examine_bundle(Path(root), None if server is None else Path(server))
