"""Write a package whose routers choose another number of heads: an arm to compare it with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from moh_deploy.errors import ConfigError
from moh_deploy.graph.change_top_k import change_top_k
from moh_deploy.graph.load_model import load_ir
from moh_deploy.package import (
    MODEL_NAME,
    LayerInfo,
    Made,
    OnnxPackage,
    PackageWriter,
    VectorSet,
    check_package_output,
)
from moh_deploy.system.progress import Progress, SilentProgress
from moh_deploy.validate.compare.parity import publish_if_equal, require_equal
from moh_deploy.validate.reference.head_loads import head_loads
from moh_deploy.validate.reference.layer_values import Recorder
from moh_deploy.validate.reference.samples import named_mask, recorded_samples, with_valid_tokens


def with_top_k(
    package_dir: Path | str,
    output: Path | str,
    *,
    top_k: int | None,
    progress: Progress | None = None,
) -> OnnxPackage:
    """Write the package with another `top_k` in its routers; weights and choices stay.

    It is another model than the original. What it has recorded is of its own function bodies, which
    tells faults of kernels and of a runtime, and not whether the model is right.

    Args:
        package_dir: The package, of any precision but int8.
        output: The package directory to write.
        top_k: Routed heads that a token chooses; None for all of them, so that every head is open.
        progress: What to report steps to.

    Raises:
        ConfigError: The routers are of a form in which that is no attribute, or have fewer heads.
        PackageError: Not a package, or the output cannot be written.
        ValidationError: The package is not equal to its original, or what was made not to its
            function bodies. Nothing is written.
    """
    progress, output = progress or SilentProgress(), Path(output)
    check_package_output(output, made_of=Path(package_dir))
    with progress.step("reading the package"):
        package = OnnxPackage.open(package_dir)
        if package.manifest.precision == "int8":
            raise ConfigError(
                f"{package.root} is in int8, whose scales belong to the heads that it has.",
                hint="Change the float32 package, and bring that to int8.",
            )
        model = load_ir(package)
        layers = change_top_k(model, package.manifest.layers, top_k)
    with progress.step("comparing the package with its original model"):
        require_equal(package)
    how = "every head is open" if top_k is None else f"top_k is {top_k}"
    made = Made(how, package.manifest.files[MODEL_NAME])
    manifest = replace(
        package.manifest, layers=layers, proof=None, rounding=None, tuning=None, made=made
    )
    with PackageWriter(output) as writer:
        with progress.step("writing the package"):
            writer.save_model(model, package)
            changed = replace(package, root=writer.root, manifest=manifest, corpus=())
        with progress.step("recording its function bodies"):
            vectors = _recorded(changed)
            changed = replace(changed, vectors=vectors)
            manifest = replace(manifest, layers=_with_shares(changed))
        staged = writer.stage(manifest, vectors)
        with progress.step("comparing what was written with that"):
            written, _ = publish_if_equal(writer, staged, name="the package with another top_k")
    return written


def _recorded(package: OnnxPackage) -> tuple[VectorSet, ...]:
    recorder = Recorder.of(package)
    with recorder.runner:
        return tuple(recorder.record(run.inputs) for run in package.vectors)


def _with_shares(package: OnnxPackage) -> tuple[LayerInfo, ...]:
    """Return the layers with the share of open gates in the recorded runs."""
    manifest = package.manifest
    runs = recorded_samples(package.vectors)
    loads = head_loads(package, with_valid_tokens(runs, manifest, named_mask(manifest, None)))
    return tuple(
        replace(layer, active_share=sum(load.load) / layer.num_heads)
        for layer, load in zip(manifest.layers, loads, strict=True)
    )
