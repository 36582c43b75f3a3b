"""Build an engine of TensorRT or TensorRT-RTX, as planned."""

import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from moh_deploy import __version__
from moh_deploy.derive.precision import write_precision
from moh_deploy.errors import BackendError
from moh_deploy.machine.gpu import DeviceCode, device_code
from moh_deploy.package import MODEL_DATA_NAME, MODEL_NAME, OnnxPackage
from moh_deploy.package.writer import save_model
from moh_deploy.runtime.tensorrt import engine_dir, engine_graph, load, preflight
from moh_deploy.runtime.tensorrt.build_plan import BuildPlan, TimingCache
from moh_deploy.runtime.tensorrt.build_process import BuildProcess
from moh_deploy.runtime.tensorrt.build_report import BuildReport
from moh_deploy.runtime.tensorrt.candidate_networks import choose_ways
from moh_deploy.runtime.tensorrt.flavour import HOW_TO_BUILD, PLUGIN_NAME, REGISTERED_NAME
from moh_deploy.runtime.tensorrt.messages import BuildAnswer, BuildRequest
from moh_deploy.runtime.tensorrt.profiles import shapes
from moh_deploy.runtime.tensorrt.tool_lines import tool_lines
from moh_deploy.system.bounded_file import sha256_of
from moh_deploy.system.progress import Progress
from moh_deploy.system.replaceable import DirectoryKind
from moh_deploy.system.staging import StagedDirectory, sync_file, temporary_place
from moh_deploy.validate.compare.parity import require_equal

_WORK_NAME, _LOWERED_NAME, _TIMING_NAME = "work", "lowered", "timing"
_TIMES_BEFORE, _TIMES_AFTER = "times.before", "times.after"
# Of a library that tests make, over kernels for the CPU: what the real one can be compiled for.
_LEAST_CODE = DeviceCode(machine=(), ptx=(80,))
ENGINE = DirectoryKind(
    noun="engine",
    manifest=engine_dir.ENGINE_MANIFEST_NAME,
    is_manifest=engine_dir.looks_like_engine,
    # Python leaves its cache beside the loader.
    files=frozenset({*engine_dir.ENGINE_FILES, "__pycache__"}),
)


def write_engine(
    plan: BuildPlan, output: Path, progress: Progress, *, dry_run: bool
) -> BuildReport:
    """Build an engine, unless the output is one of all the same already; see `moh_deploy.build`.

    Raises:
        BackendError: TensorRT is missing, refuses the package (with every reason), or failed.
        ValidationError: The package differs from the original model.
    """
    # A dry run works elsewhere, and never commits.
    place = temporary_place("moh-deploy-build") if dry_run else output
    with ExitStack() as closing:
        staged = closing.enter_context(StagedDirectory(place))
        work, log = staged.path / _WORK_NAME, staged.path / engine_dir.ENGINE_LOG_NAME
        work.mkdir()
        with progress.step(f"starting {plan.flavour.title}"):
            # The process ends before the staged directory goes: it writes its log there.
            process = closing.enter_context(BuildProcess(plan.flavour, folder=work, log=log))
        return _Build(plan, process, staged, progress).run(output, dry_run=dry_run)


class _Build:
    """Carries out one build, by the process that has TensorRT."""

    def __init__(
        self, plan: BuildPlan, process: BuildProcess, staged: StagedDirectory, progress: Progress
    ) -> None:
        self._plan, self._process, self._progress = plan, process, progress
        self._staged, self._work = staged, staged.path / _WORK_NAME
        self._title = f"{plan.flavour.title} {process.stack.version}"
        self._interface = plan.package.manifest  # of what TensorRT is given
        path, stack = plan.timing_cache, plan.stack(process.stack)
        self._times = None if path is None else TimingCache(path, stack)

    def run(self, output: Path, *, dry_run: bool) -> BuildReport:
        plan = self._plan
        # The key needs the versions and the GPU, which only the process with TensorRT knows.
        earlier = engine_dir.read_whole(output)
        # Earlier versions wrote down neither the caches nor, of lowered ones, their dtypes.
        if (
            earlier is not None
            and earlier.caches == plan.package.manifest.caches
            and earlier.key == plan.key(self._process.stack)
        ):
            _require(earlier.layers, required=plan.only_kernels)
            report = self._report(output, "cached", earlier.layers)
            report = replace(report, tool_lines=tool_lines(output, earlier))
            size = (output / engine_dir.ENGINE_NAME).stat().st_size
            return replace(report, engine_bytes=size, build_seconds=earlier.build_seconds)
        graph, refused = self._lower(timed=not dry_run)
        rejections = refused + self._refused_targets(graph)
        if not rejections and plan.low is None:  # else it was compared when it was lowered
            with self._progress.step("comparing the package with the original model"):
                require_equal(plan.package)
        if not rejections:
            _require(graph.planned_layers(), required=plan.only_kernels)
        # Parsed even if the build is refused already: the parser's reasons are to be said with the
        # others.
        request = self._request(graph, parse_only=dry_run or bool(rejections))
        answer = self._process.build(request, self._progress)
        rejections += preflight.refused_by_parser(answer.errors, self._title)
        if rejections and not dry_run:
            raise preflight.refusal(rejections, title=self._title)
        # After a refusal there may be no network to read back: what was planned is reported.
        layers = graph.planned_layers()
        if not rejections:
            engine_graph.check_network(graph, answer, title=self._title)
            layers = engine_graph.engine_layers(
                graph, plugins=answer.plugins, attentions=answer.attentions
            )
        if dry_run:
            report = self._report(output, "refused" if rejections else "possible", layers)
            return replace(report, rejections=rejections)
        manifest = self._write(layers, answer)
        report = self._report(output, "built", layers)
        report = replace(report, tool_lines=tool_lines(output, manifest))
        return replace(report, engine_bytes=answer.engine_bytes, build_seconds=answer.seconds)

    def _lower(
        self, *, timed: bool
    ) -> tuple[engine_graph.EngineGraph, tuple[preflight.Rejection, ...]]:
        """Write the model that TensorRT is given; return what the plugins refuse, too."""
        plan = self._plan
        plan.require_gpu(self._process.stack)
        plan.require_cache_layer(self._process.stack)
        plan.require_hardware_level(self._process.stack)
        package = plan.package
        if plan.low is not None:  # The lowered one is compared with the original model.
            lowered = write_precision(package, plan.low, self._work / _LOWERED_NAME, self._progress)
            # Written a moment ago by this very process.
            package = OnnxPackage.open(lowered.package, check_digests=False)
        self._interface = package.manifest
        with self._progress.step("reading the model"):
            read = engine_graph.read_graph(
                package, plan.profiles, no_plugins=plan.no_plugins, only_kernels=plan.only_kernels
            )
        refused = read.rejections
        if plan.library is not None and read.plugin_nodes:
            refused += preflight.refused_driver(
                self._process.stack.driver, needed=plan.library.cuda
            )
        choices = choose_ways(
            read,
            plan,
            here=self._process.stack.compute_capability,
            # What is refused is not built: its times are not measured.
            timed=timed and not refused,
            folder=self._work / _TIMING_NAME,
            progress=self._progress,
        )
        with self._progress.step("lowering the model"):
            graph = read.lowered(choices, is_portable=plan.is_portable)
            save_model(graph.model, package, self._work)
        return graph, refused

    def _refused_targets(self, graph: engine_graph.EngineGraph) -> tuple[preflight.Rejection, ...]:
        here = self._process.stack.compute_capability
        targets = self._plan.targets or ((here,) if here is not None else ())
        library = self._plan.library
        if library is None or not graph.plugin_nodes:
            return ()
        code = device_code(library.path)
        if not (code.machine or code.ptx):
            code = _LEAST_CODE
        return preflight.refused_targets(targets, runs_on=code.runs_on, has_code=str(code))

    def _request(self, graph: engine_graph.EngineGraph, *, parse_only: bool) -> BuildRequest:
        plan, inputs = self._plan, self._plan.package.manifest.inputs
        times = None if self._times is None else self._times.read()
        before = self._work / _TIMES_BEFORE
        if times is not None:
            before.write_bytes(times)
        return BuildRequest(
            model=str(self._work / MODEL_NAME),
            engine=None if parse_only else str(self._staged.path / engine_dir.ENGINE_NAME),
            plugin=None if plan.library is None else str(plan.library.path),
            creators=graph.plugin_ops,
            embed_plugin=plan.embed_plugin,
            compute_capabilities=plan.targets,
            profiles=tuple(shapes(inputs, profile) for profile in plan.profiles),
            workspace_bytes=plan.workspace_bytes,
            timing_cache=None if times is None else str(before),
            timing_cache_out=None if self._times is None else str(self._work / _TIMES_AFTER),
            version_compatible=plan.version_compatible,
            hardware_compatibility=plan.hardware_compatibility,
            builder=plan.builder,
        )

    def _write(
        self, layers: tuple[engine_dir.EngineLayer, ...], answer: BuildAnswer
    ) -> engine_dir.EngineManifest:
        """Put the engine directory at its place."""
        with self._progress.step("writing the engine"):
            measured = None if self._times is None else (self._work / _TIMES_AFTER).read_bytes()
            if self._plan.keep_onnx:
                for name in (MODEL_NAME, MODEL_DATA_NAME):
                    if (self._work / name).exists():
                        (self._work / name).rename(self._staged.path / name)
            shutil.rmtree(self._work)
            # This machine's folders stay out of TensorRT's log, which lies beside the engine.
            log, library = self._staged.path / engine_dir.ENGINE_LOG_NAME, self._plan.library
            text = log.read_bytes()
            for folder in (self._work, *([library.path.parent] if library else [])):
                text = text.replace(os.fsencode(folder) + b"/", b"")
            log.write_bytes(text)
            plugin = None
            if library is not None:
                plugin = engine_dir.PluginInfo(
                    None if self._plan.embed_plugin else PLUGIN_NAME, library.sha256
                )
                if plugin.file is not None:
                    shutil.copyfile(library.path, self._staged.path / PLUGIN_NAME)
            if self._plan.registered is not None:
                shutil.copyfile(self._plan.registered, self._staged.path / REGISTERED_NAME)
            shutil.copyfile(load.__file__, self._staged.path / engine_dir.LOADER_NAME)
            manifest = self._manifest(layers, answer, plugin)
            path = self._staged.path / engine_dir.ENGINE_MANIFEST_NAME
            path.write_text(engine_dir.engine_manifest_text(manifest), encoding="utf-8")
            for file in self._staged.path.iterdir():
                sync_file(file)
            self._staged.commit()
            # After the engine, which is whole without it. A file that is no cache, or of another
            # machine, stays as it is.
            if self._times is not None and measured and self._times.why_ignored() is None:
                self._times.write(measured)
        return manifest

    def _manifest(
        self,
        layers: tuple[engine_dir.EngineLayer, ...],
        answer: BuildAnswer,
        plugin: engine_dir.PluginInfo | None,
    ) -> engine_dir.EngineManifest:
        plan, stack = self._plan, self._process.stack
        versions = {"moh-deploy": __version__, plan.flavour.title: stack.version}
        # The engine does not depend on the log, which anybody may cut or remove.
        files = [
            path.name
            for path in sorted(self._staged.path.iterdir())
            if path.name != engine_dir.ENGINE_LOG_NAME
        ]
        return engine_dir.EngineManifest(
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
            builder=plan.builder,
        )

    def _report(
        self, output: Path, status: str, layers: tuple[engine_dir.EngineLayer, ...]
    ) -> BuildReport:
        plan, notes = self._plan, []
        if plan.library is None and not plan.plain:
            notes.append(f"no plugin library: MoH layers run their function bodies. {HOW_TO_BUILD}")
        ignored = None if self._times is None else self._times.why_ignored()
        if self._times is not None and ignored is not None:
            notes.append(f"timing cache {self._times.path} is neither used nor replaced: {ignored}")
        where = "in the engine" if plan.embed_plugin else PLUGIN_NAME
        return BuildReport(
            output=output,
            backend=self._title,
            status=status,
            precision=plan.precision,
            compute_capabilities=plan.targets,
            profiles=plan.profiles,
            layers=layers,
            plugin=None if plan.library is None else where,
            notes=tuple(notes),
        )


def _require(layers: Sequence[engine_dir.EngineLayer], *, required: bool) -> None:
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
