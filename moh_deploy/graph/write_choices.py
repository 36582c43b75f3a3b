"""Write a package again with other choices for its layers; everything else stays as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from moh_deploy.graph.choose_layers import choose_layers, ops_of
from moh_deploy.graph.load_model import load_ir
from moh_deploy.package import (
    MODEL_DATA_NAME,
    MODEL_NAME,
    LayerInfo,
    OnnxPackage,
    PackageWriter,
    Runtime,
    Tuning,
)
from moh_deploy.package.onnx_file import save_with_weights


def write_choices(
    package: OnnxPackage,
    layers: Sequence[LayerInfo],
    output: Path,
    *,
    tuning: Tuning | None = None,
    runtime: Runtime | None = None,
) -> OnnxPackage:
    """Write the package with these layers in place of its own.

    Args:
        package: Where everything else comes from.
        layers: The package's layers, with other choices.
        output: The directory to write; the package's own, to replace it in one step.
        tuning: What the choices rest on.
        runtime: What is to run the package where nothing else is asked for; None for what it says.

    Raises:
        PackageError: It cannot be written, the disk is full, or the model lacks a layer's node.
            What was there is still there.
    """
    model = load_ir(package)
    choose_layers(model, layers)
    with PackageWriter(output) as writer:
        if MODEL_DATA_NAME in package.manifest.files:
            # Choices change no weight, so a gigabyte of them is linked and not written again.
            writer.bring_along(package, MODEL_DATA_NAME)
            ir.save(model, writer.path(MODEL_NAME))
        else:
            save_with_weights(model, writer.path(MODEL_NAME))
        writer.bring_tokenizer(package)
        # `ops` lists domains, which the choices have changed.
        manifest = replace(package.manifest, layers=tuple(layers), ops=ops_of(model), tuning=tuning)
        manifest = replace(manifest, runtime=runtime or manifest.runtime)
        return writer.finish(manifest, package.vectors, package.corpus)
