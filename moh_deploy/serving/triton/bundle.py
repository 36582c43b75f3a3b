"""Write a package or an engine as a directory that Triton loads.

    bundle.json                      digests, versions, settings, what the kernels need
    repository/NAME/config.pbtxt     what Triton reads
    repository/NAME/1/               the model's only version
        model.py, package/           python: our code, and the package
        model.onnx                   onnxruntime: the package's model, for the server's own backend
        package/                     tensorrt: the engine directory
    repository/NAME/warmup/          recorded inputs, which run before the first request
    lib/                             kernels
    guard/                           the policy, with the packages and reports that it names
    shadow/                          a package that runs beside
    reference.json                   the routing profile that drift is measured against
    probe.py                         asks the server for one answer: is it alive?
    supervise.py                     starts the server again where it gives none
    dashboard.json, alerts.yaml, kserve.yaml   for Grafana, Prometheus, KServe

Nothing in it names a place outside of it: it may be moved and copied.
"""

from __future__ import annotations

import platform
import re
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

from moh_deploy import __version__, native
from moh_deploy.errors import ConfigError
from moh_deploy.graph.load_model import load_ir
from moh_deploy.graph.tell_compute_type import tell_compute_type
from moh_deploy.ops.op_names import KERNEL_DOMAIN, base_domain, numbered_domain
from moh_deploy.package import MODEL_DATA_NAME, MODEL_NAME, OnnxPackage, VectorSet
from moh_deploy.package.manifest_json import MANIFEST_NAME
from moh_deploy.package.writer import save_model
from moh_deploy.runtime.base import Deployed
from moh_deploy.runtime.models import require_onnxruntime
from moh_deploy.runtime.onnxruntime.kernels import instruction_sets
from moh_deploy.runtime.tensorrt.engine_dir import (
    ENGINE_MANIFEST_NAME,
    ENGINE_NAME,
    EngineManifest,
)
from moh_deploy.serving.batches import BatchAxis
from moh_deploy.serving.drift.reference import read_reference
from moh_deploy.serving.guard.policy import GuardPolicy, read_guard_policy
from moh_deploy.serving.joining import find_joining
from moh_deploy.serving.served_model import open_served
from moh_deploy.serving.settings import ServingSettings
from moh_deploy.serving.telemetry.routing import RoutingReader
from moh_deploy.serving.triton import library_needs, supervise
from moh_deploy.serving.triton.alerts import alerts_text
from moh_deploy.serving.triton.bundle_json import (
    BUNDLE_NAME,
    LIBRARIES,
    REPOSITORY,
    SERVED,
    WARMUP,
    Bundle,
    LibraryInfo,
    bundle_text,
    looks_like_bundle,
)
from moh_deploy.serving.triton.bundled_guard import (
    GUARD,
    NOTHING_BESIDE,
    SHADOW,
    GuardFiles,
    bring_along,
)
from moh_deploy.serving.triton.config_pbtxt import Backend, ModelFacts, Warmup, config_text
from moh_deploy.serving.triton.dashboard import dashboard_text
from moh_deploy.serving.triton.kserve import Cluster, kserve_text
from moh_deploy.serving.triton.probe import PROBE_NAME, probe_text
from moh_deploy.serving.triton.server import SUPERVISE_NAME
from moh_deploy.system.digest import sha256_of
from moh_deploy.system.npz import Array
from moh_deploy.system.replaceable import DirectoryKind, check_output
from moh_deploy.system.staging import StagedDirectory, link_or_copy, sync_file

MODEL_FILE = '''\
"""What Triton's Python backend runs: moh-deploy serves the package beside this file."""

from moh_deploy.serving.triton.python_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''
MODEL_FILE_NAME = "model.py"
REFERENCE_NAME = "reference.json"
MOST_WARMUPS = 4
# Those that the library knows without being told (plugins/ort/domains.h).
_DEFAULT_DOMAINS = {numbered_domain(KERNEL_DOMAIN, number) for number in range(1, 9)}
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


@dataclass(frozen=True)
class BundleOptions:
    """Options of a bundle that is to be written.

    Attributes:
        settings: How the model is served.
        backend: What runs it; None: `tensorrt` for an engine, `python` for a package.
        reference: The routing profile to bring along.
        image: The container for KServe; None: a name that says what has to be in it.
        storage: Where the cluster will find the bundle.
        beside: The guard's policy, and packages beside.
    """

    settings: ServingSettings
    backend: Backend | None = None
    reference: Path | None = None
    image: str | None = None
    storage: str | None = None
    beside: GuardFiles = NOTHING_BESIDE


def write_bundle(model: Deployed, output: Path, options: BundleOptions) -> Bundle:
    """Write the bundle of a package or engine; it appears whole or not at all.

    Raises:
        ConfigError: The name is none for Triton, the backend none for this model, or Triton has no
            tensors of a dtype of it.
        PackageError: It cannot be written, or the model has changed since it was written.
        ValidationError: `verify` refuses a package beside.
    """
    _check_names(options.settings)
    _check_beside(options, _backend_for(model, options.backend))
    if options.reference is not None:
        _check_reference(options.reference, model.made_from(None))
    writing = _Writing(model, output, options)
    check_output(output, BUNDLE_KIND)
    with StagedDirectory(output) as staged:
        bundle = writing.fill(staged.path)
        staged.commit()
    return bundle


BUNDLE_KIND = DirectoryKind(
    noun="bundle",
    manifest=BUNDLE_NAME,
    is_manifest=looks_like_bundle,
    files=frozenset(
        {BUNDLE_NAME, REPOSITORY, LIBRARIES, GUARD, SHADOW, REFERENCE_NAME}
        | {PROBE_NAME, SUPERVISE_NAME, "dashboard.json", "alerts.yaml", "kserve.yaml"}
    ),
)


def _check_names(settings: ServingSettings) -> None:
    if not _NAME.fullmatch(settings.name):
        raise ConfigError(
            f"name is '{settings.name}', expected letters, digits, '_', '-' and '.', at most 100.",
            hint="It becomes a directory of the server, and a part of URLs: --name digits.",
        )
    if not settings.version.isdecimal() or settings.version.startswith("0"):
        raise ConfigError(f"version is '{settings.version}', expected a number from 1 on.")


def _check_beside(options: BundleOptions, backend: Backend) -> None:
    """Refuse what would never be used: only our own code guards, and counts what routers do."""
    if backend != "python" and (options.beside != NOTHING_BESIDE or options.reference is not None):
        raise ConfigError(
            f"guard, shadow and reference are for moh-deploy, which the backend '{backend}' does"
            " not run.",
            hint="Use --backend python, or leave them out.",
        )


def _check_reference(reference: Path, package: OnnxPackage) -> None:
    digest = read_reference(reference).digest
    if digest != package.manifest.files[MODEL_NAME]:
        raise ConfigError(
            f"reference {reference} is of another package: of a {MODEL_NAME} with sha256 {digest},"
            f" that of {package.root} is {package.manifest.files[MODEL_NAME]}.",
            hint="Profile this package: moh-deploy profile.",
        )


class _Writing:
    """A bundle that is being written: what was decided, then file after file."""

    def __init__(self, model: Deployed, output: Path, options: BundleOptions) -> None:
        self.output, self.options = output, options
        self.model, self.manifest = model, model.manifest
        self.backend = _backend_for(model, options.backend)
        self.axis = _batch_axis(self.manifest)
        if self.backend == "onnxruntime":
            require_onnxruntime(
                model.name,
                model.preferred_runtime,
                "Triton's backend 'onnxruntime'",
                instead="--backend python serves it in its own runtime.",
            )
            # Ours tries it in the server, at each start; there nobody will.
            settings = replace(options.settings, sample_every=0)
            with closing(open_served(model, settings)) as served:
                self.axis = find_joining(served).axis

    def fill(self, root: Path) -> Bundle:
        """Write all files below a directory."""
        libraries = self._write_libraries(root / LIBRARIES)
        settings = bring_along(self.options.beside, root, self.options.settings)
        if self.options.reference is not None:
            settings = replace(settings, reference=REFERENCE_NAME)
        # The server's own backends are told of it in their ways.
        if self.backend == "python" and libraries is not None:
            settings = replace(settings, library=libraries.file)
        bundle = Bundle(
            backend=self.backend,
            settings=settings,
            inputs=self.manifest.inputs,
            outputs=self.manifest.outputs,
            versions=self._versions(),
            package_sha256=sha256_of(self.model.root / self._manifest_name),
            max_batch=self._facts(None, ()).max_batch,
            library=libraries,
        )
        (root / bundle.version).mkdir(parents=True)
        self._write_model(root, bundle)
        warmups = tuple(self._write_warmups(root / bundle.model / WARMUP, bundle))
        facts = self._facts(bundle, warmups)
        (root / bundle.config).write_text(config_text(facts), encoding="utf-8")
        if warmups:
            options = self.options.settings.name, self.manifest.inputs, warmups[0]
            batch = self.axis.least if self.axis is not None and bundle.max_batch else None
            text = probe_text(*options, batch=batch)
            (root / PROBE_NAME).write_text(text, encoding="utf-8")
            shutil.copyfile(supervise.__file__, root / SUPERVISE_NAME)
        self._write_around(root, has_probe=bool(warmups))
        files = sorted(path for path in root.rglob("*") if path.is_file())
        for path in files:
            sync_file(path)
        digests = {path.relative_to(root).as_posix(): sha256_of(path) for path in files}
        bundle = replace(bundle, files=digests)
        (root / BUNDLE_NAME).write_text(bundle_text(bundle), encoding="utf-8")
        sync_file(root / BUNDLE_NAME)
        return bundle

    @property
    def _manifest_name(self) -> str:
        return ENGINE_MANIFEST_NAME if self.model.is_compiled else MANIFEST_NAME

    def _package(self) -> OnnxPackage:
        """Read the package, digests included; an engine holds none."""
        return self.model.made_from(None)

    def _versions(self) -> dict[str, str]:
        own = {"moh-deploy": __version__, "python": platform.python_version()}
        if isinstance(self.manifest, EngineManifest):
            return {**self.manifest.versions, **own}
        return {**own, "onnxruntime": version("onnxruntime")}

    def _write_libraries(self, folder: Path) -> LibraryInfo | None:
        """Put the kernels beside the repository, and say what they need."""
        if isinstance(self.manifest, EngineManifest):
            file = None if self.manifest.plugin is None else self.manifest.plugin.file
            source = None if file is None else self.model.root / file
            usable: tuple[str, ...] = ()
        else:
            source = native.kernel_library()
            usable = () if source is None else tuple(instruction_sets(source))
        if source is None:
            return None
        folder.mkdir()
        target = folder / source.name
        shutil.copyfile(source, target)
        return LibraryInfo(
            file=f"{LIBRARIES}/{source.name}",
            glibc=library_needs.version_text(library_needs.glibc_floor(target)),
            machine=library_needs.processor_of(target),
            instruction_sets=usable,
        )

    def _write_model(self, root: Path, bundle: Bundle) -> None:
        if self.backend == "onnxruntime":
            self._write_onnx(root / bundle.version)
            return
        if isinstance(self.manifest, EngineManifest):
            names = [*self.manifest.files, ENGINE_MANIFEST_NAME]
        else:
            names = [*self._package().manifest.files, MANIFEST_NAME]
            (root / bundle.version / MODEL_FILE_NAME).write_text(MODEL_FILE, encoding="utf-8")
        (root / bundle.served).mkdir()
        for name in names:
            link_or_copy(self.model.root / name, root / bundle.served / name)

    def _write_onnx(self, folder: Path) -> None:
        """Write the model so that it needs no session entries: that backend passes none of ours."""
        package = self._package()
        domains = {name.partition("::")[0] for name in package.manifest.ops}
        unknown = {d for d in domains if base_domain(d) == KERNEL_DOMAIN} - _DEFAULT_DOMAINS
        if unknown:
            raise ConfigError(
                f"{package.root} has nodes in domain '{min(unknown)}', which kernels take only when"
                " a session names it; Triton's ONNX Runtime backend cannot.",
                hint="Use --backend python.",
            )
        if package.manifest.compute_type != "float32":
            model = load_ir(package)
            tell_compute_type(model, package.manifest.compute_type)
            save_model(model, package, folder)
            return
        for name in (MODEL_NAME, MODEL_DATA_NAME):
            if name == MODEL_NAME or name in package.manifest.files:
                link_or_copy(package.root / name, folder / name)

    def _write_warmups(self, folder: Path, bundle: Bundle) -> Iterator[Warmup]:
        """Write the inputs of recorded runs: one sample of each input, which Triton repeats."""
        if self.model.is_compiled:
            return  # an engine directory holds no recorded runs
        folder.mkdir()
        seen: set[object] = set()
        for one in self._package().vectors:
            # Triton takes no tensor without elements for this.
            if any(array.size == 0 for array in one.inputs.values()) or len(seen) == MOST_WARMUPS:
                continue
            warmup = self._warmup(len(seen), one, bundle)
            key = warmup.samples, tuple(warmup.shapes.items())
            if key in seen:
                continue
            seen.add(key)
            for name, file in warmup.files.items():
                (folder / file).write_bytes(self._row(one.inputs[name]).tobytes())
            yield warmup

    def _warmup(self, number: int, recorded: VectorSet, bundle: Bundle) -> Warmup:
        rows = {name: self._row(array) for name, array in recorded.inputs.items()}
        samples = 1
        if self.axis is not None:
            samples = min(self.axis.size(recorded.inputs), bundle.max_batch)
        # Names of inputs may hold what no file name can.
        files = {name: f"{number}-{index}" for index, name in enumerate(rows)}
        shapes = {name: row.shape for name, row in rows.items()}
        return Warmup(f"recorded-{number}", samples, shapes, files)

    def _row(self, array: Array) -> Array:
        return np.ascontiguousarray(array if self.axis is None else array[0])

    def _facts(self, bundle: Bundle | None, warmups: tuple[Warmup, ...]) -> ModelFacts:
        library = None if bundle is None else bundle.library
        is_native = self.backend == "onnxruntime"
        profiles = self.manifest.profiles if isinstance(self.manifest, EngineManifest) else ()
        return ModelFacts(
            backend=self.backend,
            settings=self.options.settings,
            inputs=self.manifest.inputs,
            outputs=self.manifest.outputs,
            warmups=warmups,
            library=Path(library.file).name if is_native and library is not None else None,
            model_file=f"{SERVED}/{ENGINE_NAME}" if self.backend == "tensorrt" else None,
            profiles=len(profiles),
            batch_axis=self.axis,
        )

    def _write_around(self, root: Path, *, has_probe: bool) -> None:
        """Write what watches and deploys the server."""
        options, name = self.options, self.options.settings.name
        (root / "dashboard.json").write_text(dashboard_text(name), encoding="utf-8")
        (root / "alerts.yaml").write_text(self._alerts(), encoding="utf-8")
        image = options.image or f"triton-with-moh-deploy:{__version__}"
        storage = options.storage or f"pvc://models/{name}"
        is_written = options.beside.guard
        cluster = Cluster(image, storage, has_probe=has_probe, is_written=is_written)
        text = kserve_text(options.settings, self.backend, cluster)
        (root / "kserve.yaml").write_text(text, encoding="utf-8")
        if options.reference is not None:
            shutil.copyfile(options.reference, root / REFERENCE_NAME)

    def _alerts(self) -> str:
        name, policy = self.options.settings.name, self.options.beside.policy
        rungs = GuardPolicy().rungs if policy is None else read_guard_policy(policy).rungs
        # The server's own backends count none, nor does ours where no gate depends on an input.
        counts = self.backend == "python" and bool(RoutingReader.of(self._package()).values)
        return alerts_text(name, first_rung=rungs[0].called, counts_routing=counts)


def _backend_for(model: Deployed, asked: Backend | None) -> Backend:
    allowed: tuple[Backend, ...] = ("tensorrt",) if model.is_compiled else ("python", "onnxruntime")
    if asked is not None and asked not in allowed:
        raise ConfigError(
            f"backend is '{asked}', but {model.name} runs on {' or '.join(allowed)}.",
            hint=None if model.is_compiled else "Build an engine from it: moh-deploy build.",
        )
    return asked or allowed[0]


def _batch_axis(manifest: object) -> BatchAxis | None:
    axis = BatchAxis.of(manifest)  # type: ignore[arg-type]
    if axis is None or not isinstance(manifest, EngineManifest):
        return axis
    # An engine takes what one of its profiles has.
    spans = [profile[axis.dim] for profile in manifest.profiles if axis.dim in profile]
    return replace(
        axis,
        most=max((one.max for one in spans), default=None),
        least=min((one.min for one in spans), default=1),
    )
