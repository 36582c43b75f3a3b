"""Packages as earlier versions wrote them: without scores, fingerprints and measured rounding."""

import shutil
from dataclasses import replace
from pathlib import Path

from moh_deploy.package import OnnxPackage, PackageWriter


def write_bare(package: OnnxPackage, output: Path) -> OnnxPackage:
    """Write a package again, without what earlier versions did not record."""
    vectors = [replace(vector, scores=(), attention=()) for vector in package.vectors]
    manifest = replace(package.manifest, files={}, rounding=None)
    with PackageWriter(output) as writer:
        shutil.copy(package.model_path, writer.path("model.onnx"))
        return writer.finish(manifest, vectors)
