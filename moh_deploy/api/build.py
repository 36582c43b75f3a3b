"""Build an engine of TensorRT or TensorRT-RTX from a package."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Literal

from moh_deploy import __version__
from moh_deploy.api import precision as precision_job
from moh_deploy.derive.caches_in_place import write_caches_in_place
from moh_deploy.errors import BackendError, ConfigError
from moh_deploy.machine.gpu import DeviceCode, device_code
from moh_deploy.package import MODEL_DATA_NAME, MODEL_NAME, OnnxPackage
from moh_deploy.package.writer import save_model
from moh_deploy.runtime.tensorrt.build_plan import (
    BuildPlan,
    TimingCache,
    bytes_of,
    flavour_of,
    hardware_level,
    lowered_type,
    require_compatibility,
    timing_cache_path,
)
from moh_deploy.runtime.tensorrt.build_process import BuildProcess
from moh_deploy.runtime.tensorrt.build_report import BuildReport
from moh_deploy.runtime.tensorrt.candidate_networks import choose_ways
from moh_deploy.runtime.tensorrt.engine_dir import (
    ENGINE_FILES,
    ENGINE_LOG_NAME,
    ENGINE_MANIFEST_NAME,
    ENGINE_NAME,
    EngineLayer,
    EngineManifest,
    PluginInfo,
    engine_manifest_text,
    looks_like_engine,
    read_whole,
)
from moh_deploy.runtime.tensorrt.engine_graph import (
    EngineGraph,
    check_network,
    engine_layers,
    read_graph,
)
from moh_deploy.runtime.tensorrt.flavour import HOW_TO_BUILD, PLUGIN_NAME, find_plugin
from moh_deploy.runtime.tensorrt.messages import BuildAnswer, BuildRequest
from moh_deploy.runtime.tensorrt.preflight import (
    Rejection,
    refusal,
    refused_by_parser,
    refused_driver,
    refused_targets,
)
from moh_deploy.runtime.tensorrt.profiles import fixed_places, make_profiles, shapes
from moh_deploy.system.bounded_file import sha256_of
from moh_deploy.system.progress import Progress, SilentProgress
from moh_deploy.system.replaceable import DirectoryKind, check_output
from moh_deploy.system.staging import StagedDirectory, sync_file, temporary_place
from moh_deploy.validate.compare.parity import require_equal

_WORK_NAME, _LOWERED_NAME, _TIMING_NAME = "work", "lowered", "timing"
# Of a library that tests make, over kernels for the CPU: what the real one can be compiled for.
_LEAST_CODE = DeviceCode(machine=(), ptx=(80,))
_TIMES_BEFORE, _TIMES_AFTER = "times.before", "times.after"


def build(
    package_dir: Path | str,
    *,
    backend: str,
    output: Path | str,
    precision: str | None = None,
    cache: Literal["in-place"] | None = None,
    profiles: Sequence[str] = (),
    compute_capabilities: Sequence[str] = (),
    workspace: str | None = None,
    timing_cache: Path | str | None = None,
    require_kernels: bool = False,
    plain: bool = False,
    embed_plugin: bool = False,
    plugin: Path | str | None = None,
    keep_onnx: bool = False,
    version_compatible: bool = False,
    hardware_compatibility: str | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> BuildReport:
    """Build an engine, unless the output is one of all the same already.

    How layers run on a CPU says nothing of a GPU. The attention of each layer runs in the way that
    is the fastest on this machine's GPU, of the kernel, TensorRT's own attention, and the op's body
    in other layers; where nothing can be timed, a table of estimates decides, and the report says
    so. Layers that somebody chose to be dense (`moh-deploy tune --choose`) run by no kernel.

    Args:
        package_dir: The package.
        backend: `tensorrt` builds for the GPU of this machine, `tensorrt-rtx` needs none.
        output: The engine directory to write.
        precision: `float16` or `bfloat16` lowers a float32 package first; None leaves it as it is.
        cache: `in-place` builds from the package with its caches in place; None: as it has them.
        profiles: Sizes of dynamic dimensions, one text a profile: `batch=1..8..32,seq=128`.
        compute_capabilities: GPUs to build for, TensorRT-RTX only; none: the usual ones.
        workspace: The most scratch memory of a layer: `4GiB`; None: no limit.
        timing_cache: Where to keep what TensorRT measures; None: nowhere.
        require_kernels: Let kernels run whatever they take, and fail where a layer would not run by
            them.
        plain: Use no kernels: the engine that others are to be compared with.
        embed_plugin: Put the plugin library into the engine, not beside it.
        plugin: The plugin library; None: the installed one, or none.
        keep_onnx: Keep the lowered model beside the engine, for TensorRT's own tools.
        version_compatible: Let later versions of TensorRT run the engine; `tensorrt` only.
        hardware_compatibility: Let other GPUs run it, `ampere-plus` or `same-compute-capability`;
            `tensorrt` only.
        dry_run: Parse only, and write nothing.
        progress: What to report steps to.

    Returns:
        What was built. Of a dry run that found refusals, look at `failure`.

    Raises:
        ConfigError: An option is of another form, or does not fit the package.
        PackageError: Not a package, or the output cannot be written.
        BackendError: TensorRT is missing, refuses the package (with every reason), or failed.
        ValidationError: The package differs from the original model, or does in the lower
            precision.
    """
    progress, output, flavour = progress or SilentProgress(), Path(output), flavour_of(backend)
    if plain and (require_kernels or embed_plugin or plugin is not None):
        raise ConfigError(
            "plain is given, and an option of kernels: require_kernels, embed_plugin or plugin.",
            hint="A plain engine has none: leave one of them out.",
        )
    check_output(output, _ENGINE)
    _check_apart(output, Path(package_dir))
    with progress.step("reading the package"):
        package = OnnxPackage.open(package_dir)
    with ExitStack() as closing:
        if cache is not None:
            own = closing.enter_context(StagedDirectory(temporary_place("moh-deploy-cache")))
            package = write_caches_in_place(package, own.path / "package", progress)
        plan = BuildPlan(
            flavour,
            package,
            low=lowered_type(precision, package),
            profiles=make_profiles(profiles, package.manifest),
            targets=flavour.targets_of(tuple(compute_capabilities)),
            workspace_bytes=None if workspace is None else bytes_of(workspace),
            timing_cache=timing_cache_path(timing_cache, flavour),
            library=None if plain else find_plugin(None if plugin is None else Path(plugin)),
            embed_plugin=embed_plugin,
            keep_onnx=keep_onnx,
            plain=plain,
            only_kernels=require_kernels,
            version_compatible=version_compatible,
            hardware_compatibility=hardware_level(hardware_compatibility, flavour),
        )
        fixed_places(plan.profiles, package.manifest)
        if version_compatible:
            require_compatibility(flavour, "version_compatible is given")
        # Before TensorRT is started, which takes seconds.
        if require_kernels or embed_plugin:
            plan.require_library(why="--require-kernels" if require_kernels else "--embed-plugin")
        # A dry run works elsewhere, and never commits.
        place = temporary_place("moh-deploy-build") if dry_run else output
        staged = closing.enter_context(StagedDirectory(place))
        work, log = staged.path / _WORK_NAME, staged.path / ENGINE_LOG_NAME
        work.mkdir()
        with progress.step(f"starting {flavour.title}"):
            # The process ends before the staged directory goes: it writes its log there.
            process = closing.enter_context(BuildProcess(flavour, folder=work, log=log))
        run = _Build(plan, process, staged, output, progress)
        return run.run(dry_run=dry_run, require_kernels=require_kernels)


class _Build:
    """Carries out one build, by the process that has TensorRT."""

    def __init__(
        self,
        plan: BuildPlan,
        process: BuildProcess,
        staged: StagedDirectory,
        output: Path,
        progress: Progress,
    ) -> None:
        self._plan, self._process, self._progress = plan, process, progress
        self._staged, self._output = staged, output
        self._work = staged.path / _WORK_NAME
        self._title = f"{plan.flavour.title} {process.stack.version}"
        self._interface = plan.package.manifest  # of what TensorRT is given
        path, stack = plan.timing_cache, plan.stack(process.stack)
        self._times = None if path is None else TimingCache(path, stack)

    def run(self, *, dry_run: bool, require_kernels: bool) -> BuildReport:
        # The key needs the versions and the GPU, which only the process with TensorRT knows.
        earlier = read_whole(self._output)
        if earlier is not None and self._is_of_the_same(earlier):
            _require(earlier.layers, required=require_kernels)
            return self._cached(earlier)
        graph, refused = self._lower(timed=not dry_run)
        rejections = refused + self._refused_targets(graph)
        if not rejections and self._plan.low is None:  # else it was compared when it was lowered
            with self._progress.step("comparing the package with the original model"):
                require_equal(self._plan.package)
        if not rejections:
            _require(graph.planned_layers(), required=require_kernels)
        # Parsed even if the build is refused already: the parser's reasons are to be said with the
        # others.
        request = self._request(graph, parse_only=dry_run or bool(rejections))
        answer = self._process.build(request, self._progress)
        rejections += refused_by_parser(answer.errors, self._title)
        if rejections and not dry_run:
            raise refusal(rejections, title=self._title)
        # After a refusal there may be no network to read back: what was planned is reported.
        layers = graph.planned_layers()
        if not rejections:
            check_network(graph, answer, title=self._title)
            layers = engine_layers(graph, plugins=answer.plugins, attentions=answer.attentions)
        if dry_run:
            report = self._report("refused" if rejections else "possible", layers)
            return replace(report, rejections=rejections)
        self._write(layers, answer)
        report = self._report("built", layers)
        return replace(report, engine_bytes=answer.engine_bytes, build_seconds=answer.seconds)

    def _is_of_the_same(self, earlier: EngineManifest) -> bool:
        # Earlier versions wrote down neither the caches nor, of lowered ones, their dtypes.
        knows_caches = earlier.caches == self._plan.package.manifest.caches
        return knows_caches and earlier.key == self._plan.key(self._process.stack)

    def _lower(self, *, timed: bool) -> tuple[EngineGraph, tuple[Rejection, ...]]:
        """Write the model that TensorRT is given; return what the plugins refuse, too."""
        plan = self._plan
        plan.require_gpu(self._process.stack)
        plan.require_cache_layer(self._process.stack)
        plan.require_hardware_level(self._process.stack)
        package = self._in_precision()
        self._interface = package.manifest
        with self._progress.step("reading the model"):
            read = read_graph(
                package,
                plan.profiles,
                no_plugins=plan.no_plugins,
                only_kernels=plan.only_kernels,
            )
        refused = read.rejections
        if plan.library is not None and read.plugin_nodes:
            refused += refused_driver(self._process.stack.driver, needed=plan.library.cuda)
        choices = choose_ways(
            read,
            plan,
            here=self._process.stack.compute_capability,
            # What is refused is not built: nobody waits for times of it.
            timed=timed and not refused,
            folder=self._work / _TIMING_NAME,
            progress=self._progress,
        )
        with self._progress.step("lowering the model"):
            graph = read.lowered(choices, is_portable=plan.is_portable)
            save_model(graph.model, package, self._work)
        return graph, refused

    def _refused_targets(self, graph: EngineGraph) -> tuple[Rejection, ...]:
        here = self._process.stack.compute_capability
        targets = self._plan.targets or ((here,) if here is not None else ())
        library = self._plan.library
        if library is None or not graph.plugin_nodes:
            return ()
        code = device_code(library.path)
        if not (code.machine or code.ptx):
            code = _LEAST_CODE
        return refused_targets(targets, runs_on=code.runs_on, has_code=str(code))

    def _in_precision(self) -> OnnxPackage:
        """Return the package in the engine's precision, compared with the original model."""
        if self._plan.low is None:
            return self._plan.package
        lowered = precision_job.precision(
            self._plan.package.root,
            to=self._plan.low,
            output=self._work / _LOWERED_NAME,
            progress=self._progress,
        )
        # Written a moment ago by this very process.
        return OnnxPackage.open(lowered.package, check_digests=False)

    def _request(self, graph: EngineGraph, *, parse_only: bool) -> BuildRequest:
        plan, inputs = self._plan, self._plan.package.manifest.inputs
        return BuildRequest(
            model=str(self._work / MODEL_NAME),
            engine=None if parse_only else str(self._staged.path / ENGINE_NAME),
            plugin=None if plan.library is None else str(plan.library.path),
            creators=graph.plugin_ops,
            embed_plugin=plan.embed_plugin,
            compute_capabilities=plan.targets,
            profiles=tuple(shapes(inputs, profile) for profile in plan.profiles),
            workspace_bytes=plan.workspace_bytes,
            timing_cache=self._times_before(),
            timing_cache_out=None if self._times is None else str(self._work / _TIMES_AFTER),
            version_compatible=plan.version_compatible,
            hardware_compatibility=plan.hardware_compatibility,
        )

    def _times_before(self) -> str | None:
        times = None if self._times is None else self._times.read()
        if times is None:
            return None
        (self._work / _TIMES_BEFORE).write_bytes(times)
        return str(self._work / _TIMES_BEFORE)

    def _write(self, layers: tuple[EngineLayer, ...], answer: BuildAnswer) -> None:
        """Put the engine directory at its place."""
        with self._progress.step("writing the engine"):
            measured = None if self._times is None else (self._work / _TIMES_AFTER).read_bytes()
            if self._plan.keep_onnx:
                for name in (MODEL_NAME, MODEL_DATA_NAME):
                    if (self._work / name).exists():
                        (self._work / name).rename(self._staged.path / name)
            shutil.rmtree(self._work)
            self._strip_log()
            plugin = self._bring_plugin()
            manifest = self._manifest(layers, answer, plugin)
            text = engine_manifest_text(manifest)
            (self._staged.path / ENGINE_MANIFEST_NAME).write_text(text, encoding="utf-8")
            for file in self._staged.path.iterdir():
                sync_file(file)
            self._staged.commit()
            # After the engine, which is whole without it. A file that is no cache, or of another
            # machine, stays as it is.
            if self._times is not None and measured and self._times.why_ignored() is None:
                self._times.write(measured)

    def _strip_log(self) -> None:
        """Take this machine's folders out of TensorRT's log, which stays beside the engine."""
        log, library = self._staged.path / ENGINE_LOG_NAME, self._plan.library
        text = log.read_bytes()
        for folder in (self._work, *([library.path.parent] if library else [])):
            text = text.replace(os.fsencode(folder) + b"/", b"")
        log.write_bytes(text)

    def _bring_plugin(self) -> PluginInfo | None:
        library = self._plan.library
        if library is None:
            return None
        if self._plan.embed_plugin:
            return PluginInfo(None, library.sha256)
        shutil.copyfile(library.path, self._staged.path / PLUGIN_NAME)
        return PluginInfo(PLUGIN_NAME, library.sha256)

    def _manifest(
        self, layers: tuple[EngineLayer, ...], answer: BuildAnswer, plugin: PluginInfo | None
    ) -> EngineManifest:
        plan, stack = self._plan, self._process.stack
        versions = {"moh-deploy": __version__, plan.flavour.title: stack.version}
        # The engine does not depend on the log, which anybody may cut or remove.
        files = [
            path.name
            for path in sorted(self._staged.path.iterdir())
            if path.name != ENGINE_LOG_NAME
        ]
        return EngineManifest(
            backend=plan.flavour.name,
            key=plan.key(stack),
            package_sha256=plan.package_sha256,
            precision=plan.precision,
            versions=versions | stack.machine(),
            compute_capabilities=plan.targets,
            profiles=plan.profiles,
            inputs=self._interface.inputs,
            outputs=self._interface.outputs,
            layers=layers,
            plugin=plugin,
            workspace_bytes=plan.workspace_bytes,
            build_seconds=answer.seconds,
            files={name: sha256_of(self._staged.path / name) for name in files},
            version_compatible=plan.version_compatible,
            hardware_compatibility=plan.hardware_compatibility,
            caches=self._interface.caches,
        )

    def _cached(self, earlier: EngineManifest) -> BuildReport:
        size = (self._output / ENGINE_NAME).stat().st_size
        report = self._report("cached", earlier.layers)
        return replace(report, engine_bytes=size, build_seconds=earlier.build_seconds)

    def _report(self, status: str, layers: tuple[EngineLayer, ...]) -> BuildReport:
        plan = self._plan
        where = "in the engine" if plan.embed_plugin else PLUGIN_NAME
        return BuildReport(
            output=self._output,
            backend=self._title,
            status=status,
            precision=plan.precision,
            compute_capabilities=plan.targets,
            profiles=plan.profiles,
            layers=layers,
            plugin=None if plan.library is None else where,
            notes=tuple(self._notes()),
        )

    def _notes(self) -> list[str]:
        notes = []
        if self._plan.library is None and not self._plan.plain:
            notes.append(f"no plugin library: MoH layers run their function bodies. {HOW_TO_BUILD}")
        ignored = None if self._times is None else self._times.why_ignored()
        if self._times is not None and ignored is not None:
            notes.append(f"timing cache {self._times.path} is neither used nor replaced: {ignored}")
        return notes


def _require(layers: Sequence[EngineLayer], *, required: bool) -> None:
    """Refuse layers that would not run by kernels, where that is asked for."""
    others = [
        f"{layer.path} ({layer.reason})"
        for layer in layers
        if required and (layer.moh_impl != "kernel" or layer.router_impl == "function")
    ]
    if others:
        raise BackendError(
            f"kernels are required, but {len(others)} of {len(layers)} MoH layers would not run by"
            f" them: {', '.join(others)}.",
            hint="Build without --require-kernels, or see `moh-deploy inspect`.",
        )


def _check_apart(output: Path, package_dir: Path) -> None:
    # A package is replaced as a whole, and would take an engine inside of it along.
    if package_dir.resolve() in (output.resolve(), *output.resolve().parents):
        raise ConfigError(
            f"output is {output}, inside of the package {package_dir}, which holds nothing else.",
            hint="Name a directory outside of it.",
        )


_ENGINE = DirectoryKind(
    noun="engine",
    manifest=ENGINE_MANIFEST_NAME,
    is_manifest=looks_like_engine,
    files=frozenset(ENGINE_FILES),
)
