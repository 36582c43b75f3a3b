"""Write a package or an engine as a directory that Triton loads.

    bundle.json                      digests, versions, settings, what the kernels need
    repository/NAME/config.pbtxt     what Triton reads
    repository/NAME/1/               the model's only version: the package with model.py, or the
                                     engine directory
    repository/NAME/warmup/          recorded inputs, which run before the first request
    lib/                             kernels, or the plugins of an engine
    guard/                           the policy, with the packages and reports that it names
    shadow/                          a package that runs beside
    reference.json                   the routing profile that drift is measured against
    probe.py, probe.request          asks the server for one answer: is it alive?
    supervise.py                     starts a server again that gives none
    dashboard.json, alerts.yaml, kserve.yaml   for Grafana, Prometheus, KServe

Nothing in it names a place outside of it: it may be moved and copied.
"""

import json
import platform
import re
import shutil
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from moh_deploy import __version__, native
from moh_deploy.errors import ConfigError
from moh_deploy.package import MODEL_NAME, OnnxPackage
from moh_deploy.package.manifest_json import MANIFEST_NAME
from moh_deploy.runtime.base import Deployed
from moh_deploy.runtime.kernel_use import instruction_sets
from moh_deploy.runtime.openvino.extension import openvino_name
from moh_deploy.runtime.tensorrt.engine_dir import ENGINE_MANIFEST_NAME, ENGINE_NAME, EngineManifest
from moh_deploy.runtime.tensorrt.flavour import REGISTERED_NAME
from moh_deploy.serving.batches import BatchAxis
from moh_deploy.serving.drift.reference import read_reference
from moh_deploy.serving.guard.policy import GuardPolicy, read_guard_policy
from moh_deploy.serving.settings import ServingSettings
from moh_deploy.serving.telemetry.routing import RoutingReader
from moh_deploy.serving.triton import bundle_json
from moh_deploy.serving.triton.bundle_json import Bundle
from moh_deploy.serving.triton.check import library_needs
from moh_deploy.serving.triton.config_pbtxt import config_text, filled, kserve_text, triton_type
from moh_deploy.serving.triton.probe import REQUEST_NAME
from moh_deploy.system.bounded_file import sha256_of
from moh_deploy.system.bounded_yaml import read_yaml
from moh_deploy.system.npz import Array
from moh_deploy.system.replaceable import DirectoryKind, check_output
from moh_deploy.system.sealed_directory import SealedDirectory, link_or_copy
from moh_deploy.system.staging import StagedDirectory
from moh_deploy.validate.compare.parity import require_equal

GUARD, SHADOW = "guard", "shadow"
POLICY_NAME, AUDIT_NAME, CONTROL_NAME = "policy.yaml", "audit.jsonl", "control.json"


def _bring_along(settings: ServingSettings, fallback: Path | None, root: Path) -> ServingSettings:
    """Copy policy and shadow into a bundle; return settings that name them relative to it."""
    if fallback is not None and settings.policy is None:
        raise ConfigError(
            "a fallback is another package, whose loss has to be measured: it needs a policy.",
            hint="Give it one with a fallback level of kind package: `moh-deploy help guard`.",
        )
    if settings.shadow is not None:
        _copy_package(Path(settings.shadow), root / SHADOW)
        settings = replace(settings, shadow=SHADOW)
    if not settings.guard:
        return settings
    (root / GUARD).mkdir()
    if settings.policy is not None:
        _copy_policy(Path(settings.policy), fallback, root / GUARD)
        settings = replace(settings, policy=f"{GUARD}/{POLICY_NAME}")
    audit_log, control = f"{GUARD}/{AUDIT_NAME}", f"{GUARD}/{CONTROL_NAME}"
    return replace(settings, audit_log=audit_log, control=control)


def _copy_package(source: Path, target: Path) -> None:
    """Copy a package that `verify` accepts, or link its files where the disk can."""
    package = OnnxPackage.open(source)
    require_equal(package)
    target.mkdir()
    for name in (*package.manifest.files, MANIFEST_NAME):
        link_or_copy(package.root / name, target / name)


def _copy_policy(policy: Path, fallback: Path | None, folder: Path) -> None:
    """Write the policy, with the packages and reports that it names beside it."""
    # Read first: its errors are said of the user's file.
    rungs = read_guard_policy(policy).rungs
    packages = [index for index, level in enumerate(rungs) if level.kind == "package"]
    if fallback is not None and len(packages) != 1:
        raise ConfigError(
            f"{policy}: has {len(packages)} levels of kind package, expected the one that the"
            " fallback is for."
        )
    document: Any = read_yaml(policy, error=ConfigError)
    for index in packages:
        path, loss = rungs[index].path, rungs[index].measured_loss
        assert path is not None, "read_guard_policy refuses a level without its package"
        assert loss is not None, "read_guard_policy refuses a package without its loss"
        section = document["rungs"][index]
        _copy_package(fallback or path, folder / f"package-{index}")
        shutil.copyfile(loss.report, folder / f"report-{index}.json")
        section["path"] = f"package-{index}"
        section["measured_loss"]["report"] = f"report-{index}.json"
    (folder / POLICY_NAME).write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")


REFERENCE_NAME = "reference.json"
MOST_WARMUPS = 4
_SCRIPTS = Path(__file__).parent  # those of a bundle are modules of this package
_MODEL_PY = '''"""Run the package beside this file by moh-deploy, in Triton's Python backend."""

from moh_deploy.serving.triton.python_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")

BUNDLE_KIND = DirectoryKind(
    noun="bundle",
    manifest=bundle_json.BUNDLE_NAME,
    is_manifest=bundle_json.looks_like_bundle,
    files=frozenset(
        {
            bundle_json.BUNDLE_NAME,
            bundle_json.REPOSITORY,
            bundle_json.LIBRARIES,
            GUARD,
            SHADOW,
            REFERENCE_NAME,
            REQUEST_NAME,
        }
        | {"probe.py", "supervise.py", "dashboard.json", "alerts.yaml", "kserve.yaml"}
    ),
)


def write_bundle(
    served: Deployed,
    output: Path,
    settings: ServingSettings,
    *,
    backend: bundle_json.Backend | None = None,
    fallback: Path | None = None,
    image: str | None = None,
    storage: str | None = None,
) -> Bundle:
    """Write the bundle of a package or engine; it appears whole or not at all.

    Args:
        output: The directory to write; an earlier bundle is replaced.
        settings: How the model is served; policy, shadow and reference are paths on this machine.
        backend: The backend of the server; None: `tensorrt` for an engine, `python` for a package.
        fallback: The package of the policy's level of kind `package`, in place of its `path`.
        image: The container for KServe; None: a name that says what has to be in it.

    Raises:
        ConfigError: Triton does not take the name, the backend does not run this model, or Triton
            has no tensors of a dtype of it.
        PackageError: It cannot be written, or the model has changed since it was written.
        ValidationError: `verify` refuses a package beside.
    """
    chosen = _backend_for(served, settings, backend)
    # Reading a package compares its digests, as reading the manifest of an engine does.
    package = None if served.is_compiled else served.made_from(None)
    if settings.reference is not None and package is not None:
        digest = read_reference(Path(settings.reference)).digest
        if digest != package.manifest.files[MODEL_NAME]:
            raise ConfigError(
                f"reference {settings.reference} is of another package: of a {MODEL_NAME} with"
                f" sha256 {digest}, that of {package.root} is"
                f" {package.manifest.files[MODEL_NAME]}.",
                hint="Profile this package: moh-deploy profile.",
            )
    check_output(output, BUNDLE_KIND)
    with StagedDirectory(output) as staged:
        root = staged.path
        inside = _bring_along(settings, fallback, root)
        if settings.reference is not None:
            shutil.copyfile(settings.reference, root / REFERENCE_NAME)
            inside = replace(inside, reference=REFERENCE_NAME)
        bundle = _write_model(root, served, package, inside, chosen)
        has_probe = (root / REQUEST_NAME).is_file()
        texts = {
            **_watchers(settings, package),
            "kserve.yaml": kserve_text(bundle, image=image, storage=storage, has_probe=has_probe),
        }
        for name, text in texts.items():
            (root / name).write_text(text, encoding="utf-8")
        sealed = SealedDirectory(root, bundle_json.BUNDLE_NAME, "the bundle was written")
        bundle = replace(bundle, files=sealed.digests())
        sealed.write(bundle_json.bundle_text(bundle))
        staged.commit()
    return bundle


def _backend_for(
    served: Deployed, settings: ServingSettings, asked: bundle_json.Backend | None
) -> bundle_json.Backend:
    """Return the backend that runs a model; refuse settings that it does not take."""
    if not _NAME.fullmatch(settings.name):
        raise ConfigError(
            f"name is '{settings.name}', expected letters, digits, '_', '-' and '.', at most 100.",
            hint="It becomes a directory of the server, and a part of URLs: --name digits.",
        )
    if not settings.version.isdecimal() or settings.version.startswith("0"):
        raise ConfigError(f"version is '{settings.version}', expected a number from 1 on.")
    backend: bundle_json.Backend = "tensorrt" if served.is_compiled else "python"
    if asked not in (None, backend):
        raise ConfigError(
            f"backend is '{asked}', but {served.name} runs on {backend}.",
            hint=None if served.is_compiled else "Build an engine from it: moh-deploy build.",
        )
    if not isinstance(served.manifest, EngineManifest):
        if served.preferred_runtime == "onnxruntime-cuda":
            raise ConfigError(
                f"{served.name} was tuned for onnxruntime-cuda, and a bundle brings kernels for the"
                " CPU along.",
                hint="Tune it for the CPU: moh-deploy tune DIR --runtime onnxruntime. Or serve it:"
                " moh-deploy serve DIR.",
            )
        return backend
    if served.manifest.backend != "tensorrt":
        raise ConfigError(
            f"{served.name} is of {served.manifest.backend}, and Triton's backend loads engines of"
            " tensorrt only.",
            hint="Build it with --backend tensorrt, or bundle the package that it was built from.",
        )
    if settings.guard or settings.shadow or settings.reference or settings.otlp:
        raise ConfigError(
            "guard, shadow, reference and otlp need moh-deploy in the server, which the backend"
            " 'tensorrt' does not run.",
            hint="Bundle the package that the engine was built from, or leave them out.",
        )
    return backend


def _write_model(
    root: Path,
    served: Deployed,
    package: OnnxPackage | None,
    settings: ServingSettings,
    backend: bundle_json.Backend,
) -> Bundle:
    """Write what Triton reads, with the libraries that the model needs."""
    manifest, axis = served.manifest, _batch_axis(served)
    plugin = manifest.plugin if isinstance(manifest, EngineManifest) else None
    library = _write_libraries(root / bundle_json.LIBRARIES, served)
    # TensorRT's backend gets its library by an option of the server.
    if library is not None and package is not None:
        settings = replace(settings, library=library.file)
    if isinstance(manifest, EngineManifest):
        versions, files, manifest_name = manifest.versions, manifest.files, ENGINE_MANIFEST_NAME
    else:
        assert package is not None
        versions = {"onnxruntime": version("onnxruntime")}
        if served.preferred_runtime == "openvino":
            versions["openvino"] = openvino_name().removeprefix("OpenVINO ")
        files, manifest_name = package.manifest.files, MANIFEST_NAME
    own = {"moh-deploy": __version__, "python": platform.python_version()}
    bundle = Bundle(
        backend=backend,
        settings=settings,
        inputs=manifest.inputs,
        outputs=manifest.outputs,
        versions={**versions, **own},
        package_sha256=sha256_of(served.root / manifest_name),
        max_batch=0 if axis is None else min(settings.max_batch, axis.most or settings.max_batch),
        library=library,
        embeds_plugins=plugin is not None and plugin.file is None,
    )
    (root / bundle.served).mkdir(parents=True)
    for name in (*files, manifest_name):
        link_or_copy(served.root / name, root / bundle.served / name)
    if isinstance(manifest, EngineManifest):
        text = config_text(bundle, engine=ENGINE_NAME, profiles=len(manifest.profiles))
    else:
        assert package is not None
        (root / bundle.version / "model.py").write_text(_MODEL_PY, encoding="utf-8")
        text = config_text(bundle, warmups=_write_recorded(root, bundle, package, axis))
    (root / bundle.config).write_text(text, encoding="utf-8")
    return bundle


def _batch_axis(served: Deployed) -> BatchAxis | None:
    axis = BatchAxis.of(served.manifest)
    if axis is None or not isinstance(served.manifest, EngineManifest):
        return axis
    # An engine takes what one of its profiles has.
    spans = [profile[axis.dim] for profile in served.manifest.profiles if axis.dim in profile]
    return replace(
        axis,
        most=max((span.max for span in spans), default=None),
        least=min((span.min for span in spans), default=1),
    )


def _write_libraries(folder: Path, served: Deployed) -> bundle_json.LibraryInfo | None:
    """Put the kernels beside the repository, and say what they need."""
    manifest = served.manifest
    usable: tuple[str, ...] = ()
    if not isinstance(manifest, EngineManifest):
        kernels = native.kernel_library()
        if kernels is None:
            return None
        sources, usable = [kernels], tuple(instruction_sets(kernels))
    elif manifest.plugin is None or manifest.plugin.file is None:
        return None
    else:
        # The server loads the first, which registers the plugins of the second beside it.
        holders = (served.root, native.FOLDER)
        found = [path for f in holders if (path := f / REGISTERED_NAME).is_file()]
        if not found:
            raise ConfigError(
                f"{served.name} needs its plugins, which Triton takes from {REGISTERED_NAME}:"
                f" it is missing in {native.FOLDER}.",
                hint="`make plugin` builds it in the sources of moh-deploy. Or build the engine"
                " with --embed-plugin.",
            )
        sources = [found[0], served.root / manifest.plugin.file]
    folder.mkdir()
    for source in sources:
        shutil.copyfile(source, folder / source.name)
    machines, floors = zip(*(library_needs(source) for source in sources), strict=True)
    return bundle_json.LibraryInfo(
        file=f"{bundle_json.LIBRARIES}/{sources[0].name}",
        glibc=".".join(map(str, max(floors))),
        machine=machines[0],
        instruction_sets=usable,
    )


def _write_recorded(
    root: Path, bundle: Bundle, package: OnnxPackage, axis: BatchAxis | None
) -> list[dict[str, object]]:
    """Write recorded inputs, for warm-up and for the probe; return the entries of `model_warmup`.

    Of a run with a batch axis one sample is written, which Triton repeats.
    """
    folder = root / bundle.model / bundle_json.WARMUP
    folder.mkdir()
    types = {info.name: triton_type(info) for info in bundle.inputs}
    # Triton takes no tensor without elements for this.
    runs = [run for run in package.vectors if all(array.size for array in run.inputs.values())]
    entries: list[dict[str, object]] = []
    for number, run in enumerate(runs[:MOST_WARMUPS]):
        rows = {
            name: np.ascontiguousarray(array if axis is None else array[0])
            for name, array in run.inputs.items()
        }
        if number == 0:
            _write_probe(root, types, rows, batch=None if axis is None else axis.least)
        inputs = {}
        for index, (name, row) in enumerate(rows.items()):
            # Names of inputs may hold what no file name can.
            file, dims = f"{number}-{index}", list(row.shape) or [1]
            (folder / file).write_bytes(row.tobytes())
            inputs[name] = {"data_type": types[name], "dims": dims, "file": file}
        samples = 1 if axis is None else min(axis.size(run.inputs), bundle.max_batch)
        entries.append({"name": f"recorded-{number}", "batch_size": samples, "inputs": inputs})
    return entries


def _write_probe(
    root: Path, types: dict[str, str], rows: dict[str, Array], *, batch: int | None
) -> None:
    """Write the request of the probe, and the scripts that send it."""
    tensors = [
        {
            "name": name,
            "datatype": types[name].removeprefix("TYPE_"),
            "shape": [*([] if batch is None else [batch]), *(row.shape or (1,))],
            "parameters": {"binary_data_size": row.nbytes * (batch or 1)},
        }
        for name, row in rows.items()
    ]
    header = json.dumps({"inputs": tensors, "parameters": {"binary_data_output": True}})
    data = b"".join(row.tobytes() * (batch or 1) for row in rows.values())
    (root / REQUEST_NAME).write_bytes(header.encode() + b"\n" + data)
    for script in ("probe.py", "supervise.py"):
        shutil.copyfile(_SCRIPTS / script, root / script)


def _watchers(settings: ServingSettings, package: OnnxPackage | None) -> dict[str, str]:
    """Return alert rules and dashboard, by the names of their files."""
    policy = settings.policy
    rungs = GuardPolicy().rungs if policy is None else read_guard_policy(Path(policy)).rungs
    model, first = settings.name, rungs[0].called
    # TensorRT's backend counts no routing, nor does ours where no gate depends on an input.
    counts = package is not None and bool(RoutingReader.of(package).values)
    alerts = filled("alerts.yaml", model=model, first_rung=first, counts_routing=counts)
    return {"alerts.yaml": alerts, "dashboard.json": filled("dashboard.json", model=model)}
