"""Define the command `moh-deploy build`."""

from pathlib import Path
from typing import Annotated, Literal, TypedDict, Unpack

from moh_deploy.cli import options
from moh_deploy.cli.command import command
from moh_deploy.cli.output import print_answer
from moh_deploy.cli.values import ManyValues


class ToBuild(TypedDict):
    package_dir: options.PackagePath
    backend: Annotated[
        Literal["tensorrt", "tensorrt-rtx"],
        "What builds and runs the engine. tensorrt builds for the GPU of this machine;"
        " tensorrt-rtx needs none.",
    ]
    output: Annotated[Path, "--output -o ENGINE_DIR", "The directory to write."]
    precision: Annotated[
        str | None,
        "float32|float16|bfloat16",
        "Lower a float32 package first, as `moh-deploy precision` does.  [default: the package's]",
    ]
    profiles: Annotated[
        tuple[str, ...],
        "--profile NAME=MIN..OPT..MAX,...",
        "Sizes of the dynamic dimensions, such as batch=1..8..32,seq=128. Repeatable: one"
        " profile each.  [default: up to four times the example's sizes]",
    ]
    compute_capabilities: Annotated[
        tuple[str, ...],
        "--compute-capability 8.6 ...",
        "GPUs to build for, all in one engine; tensorrt-rtx only.  [default: 8.0 8.6 8.9 12.0]",
    ]
    cache: Annotated[
        Literal["in-place"] | None,
        "Build from the package with its caches in place, as export --cache in-place writes"
        " it: TensorRT 10.15 or later.  [default: as the package has them]",
    ]
    workspace: Annotated[str | None, "SIZE", "The most scratch memory of a layer: 4GiB."]
    timing_cache: Annotated[
        Path | None, "FILE", "Keep what tensorrt measures, for the next build on the same machine."
    ]
    require_kernels: Annotated[
        bool,
        "Let kernels run whatever they take, timed or not; fail where an MoH layer would not run by"
        " them.",
    ]
    plain: Annotated[bool, "Use no kernels: the engine that others are to be compared with."]
    embed_plugin: Annotated[bool, "Put the plugin library into the engine."]
    plugin: Annotated[
        Path | None, "FILE", "The plugin library, libmoh_plugin.so.  [default: the installed one]"
    ]
    keep_onnx: Annotated[
        bool, "Keep the lowered model beside the engine, for trtexec and Polygraphy."
    ]
    version_compatible: Annotated[
        bool, "Let later versions of TensorRT run the engine; tensorrt only."
    ]
    hardware_compatibility: Annotated[
        Literal["ampere-plus", "same-compute-capability"] | None,
        "Let other GPUs run the engine; tensorrt only.",
    ]
    refit: Annotated[bool, "Let the engine's weights be replaced."]
    weight_streaming: Annotated[bool, "Let weights stay in the host's memory."]
    strip_weights: Annotated[bool, "Leave out weights that a refit brings."]
    builder_optimization_level: Annotated[
        int | None, "0..5", "How long TensorRT searches.  [default: TensorRT's]"
    ]
    dry_run: Annotated[bool, "Say what would be built or refused; write nothing."]


@command("build", ManyValues, many={"--compute-capability": r"\d+\.\d+"})
def build_command(as_json: options.Json, **given: Unpack[ToBuild]) -> None:
    """Build an engine of TensorRT or TensorRT-RTX from the package DIR."""
    from moh_deploy.api.build import build

    print_answer(lambda progress: build(**given, progress=progress), as_json=as_json)
