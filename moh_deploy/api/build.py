"""Build an engine of TensorRT or TensorRT-RTX from a package."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

from moh_deploy.derive.engine import ENGINE, write_engine
from moh_deploy.derive.forms import write_caches_in_place
from moh_deploy.errors import ConfigError
from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.tensorrt import build_plan
from moh_deploy.runtime.tensorrt.build_report import BuildReport
from moh_deploy.runtime.tensorrt.flavour import find_plugin
from moh_deploy.runtime.tensorrt.messages import BuilderOptions
from moh_deploy.runtime.tensorrt.profiles import fixed_places, make_profiles
from moh_deploy.system.progress import Progress, SilentProgress
from moh_deploy.system.replaceable import check_output
from moh_deploy.system.staging import StagedDirectory, temporary_place


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
    refit: bool = False,
    weight_streaming: bool = False,
    strip_weights: bool = False,
    builder_optimization_level: int | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> BuildReport:
    """Build an engine, unless the output is one of all the same already.

    How layers run on a CPU says nothing of a GPU. The attention of each layer runs in the way that
    is the fastest on this machine's GPU, of the kernel, TensorRT's own attention, and the op's body
    in other layers; where nothing can be timed, a table of estimates decides, and the report says
    so. Layers set to dense by hand (`moh-deploy tune --choose`) run by no kernel.

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
        refit: Let the engine's weights be replaced.
        weight_streaming: Let weights stay in the host's memory, by a budget set at run time.
        strip_weights: Leave out weights that a refit brings: the engine needs that to run.
        builder_optimization_level: 0 to 5: how long TensorRT searches; None: its own.
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
    progress, output = progress or SilentProgress(), Path(output)
    flavour = build_plan.flavour_of(backend)
    if plain and (require_kernels or embed_plugin or plugin is not None):
        raise ConfigError(
            "plain is given, and an option of kernels: require_kernels, embed_plugin or plugin.",
            hint="A plain engine runs without kernels: leave one of them out.",
        )
    check_output(output, ENGINE)
    # A package is replaced as a whole, and would take an engine inside of it along.
    if Path(package_dir).resolve() in (output.resolve(), *output.resolve().parents):
        raise ConfigError(
            f"output is {output}, inside of the package {package_dir}, which holds nothing else.",
            hint="Name a directory outside of it.",
        )
    with progress.step("reading the package"):
        package = OnnxPackage.open(package_dir)
    with ExitStack() as closing:
        if cache is not None:
            own = closing.enter_context(StagedDirectory(temporary_place("moh-deploy-cache")))
            package = write_caches_in_place(package, own.path / "package", progress)
        plan = build_plan.BuildPlan(
            flavour,
            package,
            low=build_plan.lowered_type(precision, package),
            profiles=make_profiles(profiles, package.manifest),
            targets=flavour.targets_of(tuple(compute_capabilities)),
            workspace_bytes=None if workspace is None else build_plan.bytes_of(workspace),
            timing_cache=build_plan.timing_cache_path(timing_cache, flavour),
            library=None if plain else find_plugin(None if plugin is None else Path(plugin)),
            embed_plugin=embed_plugin,
            keep_onnx=keep_onnx,
            plain=plain,
            only_kernels=require_kernels,
            version_compatible=version_compatible,
            hardware_compatibility=build_plan.hardware_level(hardware_compatibility, flavour),
            builder=build_plan.builder_options(
                BuilderOptions(refit, weight_streaming, strip_weights, builder_optimization_level),
                flavour,
            ),
        )
        fixed_places(plan.profiles, package.manifest)
        if version_compatible:
            build_plan.require_compatibility(flavour, "version_compatible is given")
        # Before TensorRT is started, which takes seconds.
        if require_kernels or embed_plugin:
            plan.require_library(why="--require-kernels" if require_kernels else "--embed-plugin")
        return write_engine(plan, output, progress, dry_run=dry_run)
