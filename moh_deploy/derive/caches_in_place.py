"""Put the caches of a decoder in place, in a model that is exported or a package that is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from moh_deploy.graph.caches_in_place import put_caches_in_place
from moh_deploy.graph.choose_layers import choose_layers, ops_of
from moh_deploy.graph.load_model import load_ir
from moh_deploy.package import Manifest, OnnxPackage, PackageWriter, VectorSet
from moh_deploy.package.cache_buffers import in_buffers
from moh_deploy.system.progress import Progress
from moh_deploy.validate.compare.parity import publish_if_equal, require_equal


def with_caches_in_place(
    model: ir.Model, manifest: Manifest, vectors: Sequence[VectorSet]
) -> tuple[Manifest, tuple[VectorSet, ...]]:
    """Change a model, and return what is to be said of it; nothing is compared.

    Args:
        model: Changed.
        manifest: What is said of it before.
        vectors: Recorded runs of the original.

    Raises:
        ConfigError: It has no caches that grow, or one that cannot be written in place.
    """
    caches = put_caches_in_place(model, manifest, vectors)
    manifest, runs = in_buffers(manifest, vectors, caches)
    choose_layers(model, manifest.layers)
    manifest = replace(manifest, ops=ops_of(model), opset=model.opset_imports[""])
    return manifest, runs


def write_caches_in_place(package: OnnxPackage, output: Path, progress: Progress) -> OnnxPackage:
    """Write a package again with its caches in place, proven equal to the original.

    Args:
        output: The package directory to write.

    Raises:
        ConfigError: It has no caches that grow, or one that cannot be written in place.
        ValidationError: The package, or the new one, is not equal to the original model.
    """
    with progress.step("comparing the package with the original model"):
        require_equal(package)
    with progress.step("putting the caches in place"):
        model = load_ir(package)
        manifest, vectors = with_caches_in_place(model, package.manifest, package.vectors)
    with PackageWriter(output) as writer:
        with progress.step("writing the package"):
            writer.save_model(model, package)
            manifest = writer.stage(manifest, vectors)
        with progress.step("comparing what was written with the original model"):
            written, _ = publish_if_equal(
                writer,
                manifest,
                name="the package with caches in place",
                hint="This is a fault of moh-deploy: --cache concatenated does without.",
            )
    return written
