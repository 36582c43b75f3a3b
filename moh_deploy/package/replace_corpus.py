"""Write a package again with another regression corpus; everything else stays as it is."""

from __future__ import annotations

from collections.abc import Sequence

from moh_deploy.package import MODEL_DATA_NAME, MODEL_NAME, CorpusSample, OnnxPackage, PackageWriter


def replace_corpus(package: OnnxPackage, corpus: Sequence[CorpusSample]) -> OnnxPackage:
    """Replace the package, in one step, by one with this corpus.

    Raises:
        PackageError: It cannot be written, or the disk is full. What was there is still there.
    """
    with PackageWriter(package.root) as writer:
        for name in (MODEL_NAME, MODEL_DATA_NAME):
            if name in package.manifest.files:
                writer.bring_along(package, name)
        writer.bring_tokenizer(package)
        return writer.finish(package.manifest, package.vectors, corpus)
