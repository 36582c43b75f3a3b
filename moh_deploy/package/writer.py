"""Write a package so that it is there completely or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from moh_deploy.errors import PackageError
from moh_deploy.package.manifest import Manifest
from moh_deploy.package.manifest_json import MANIFEST_NAME, looks_like_manifest, manifest_text
from moh_deploy.package.onnx_file import save_with_weights
from moh_deploy.package.onnx_package import MODEL_DATA_NAME, MODEL_NAME, OnnxPackage, sealed
from moh_deploy.package.vectors import (
    CORPUS_NAME,
    VECTORS_NAME,
    CorpusSample,
    VectorSet,
    write_corpus,
    write_vectors,
)
from moh_deploy.system import replaceable
from moh_deploy.system.replaceable import DirectoryKind
from moh_deploy.system.sealed_directory import link_or_copy
from moh_deploy.system.staging import StagedDirectory

# The files of a package that hold its model: weights inside, or beside it.


def save_model(model: ir.Model, package: OnnxPackage, root: Path) -> None:
    """Write a model as a package's: its weights beside it where the package keeps them there."""
    if MODEL_DATA_NAME in package.manifest.files:
        ir.save(model, root / MODEL_NAME, external_data=MODEL_DATA_NAME)
    else:
        save_with_weights(model, root / MODEL_NAME)


def model_bytes(package: OnnxPackage) -> int:
    """Return the size of the model with its weights."""
    names = (MODEL_NAME, MODEL_DATA_NAME)
    return sum((package.root / n).stat().st_size for n in names if (package.root / n).is_file())


# Names of the files that a package takes over from a model directory: its tokenizer's, and what
# tells transformers how images are prepared and labels are called.

TOKENIZER_NAME = "tokenizer.json"
TOKENIZER_FILES = (
    TOKENIZER_NAME,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "generation_config.json",
)
CARRIED_FILES = (
    *TOKENIZER_FILES,
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
)


class PackageWriter:
    """Collect the files of a package beside its destination; `finish` puts it there in one step.

    Leaving the `with` block without `finish`, by whatever exception or by SIGTERM, removes all that
    was written.

        with PackageWriter(Path("out")) as writer:
            save(model, writer.path("model.onnx"))
            package = writer.finish(manifest, vectors)

    Args:
        output: The package directory. It may not exist yet, be empty, or hold a package, which is
            replaced.

    Raises:
        PackageError: The output cannot be written or must not be replaced; the disk is full.
    """

    def __init__(self, output: Path) -> None:
        self._output = output
        self._staged = StagedDirectory(output)

    def __enter__(self) -> PackageWriter:
        # Again at the latest moment: the output may have changed since the command began.
        check_package_output(self._output)
        self._staged.__enter__()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._staged.__exit__(kind, error, trace)

    @property
    def root(self) -> Path:
        """The directory the files are collected in until `finish`."""
        return self._staged.path

    def path(self, name: str) -> Path:
        """Return where to write the package's file of this name."""
        return self.root / name

    def bring_along(self, earlier: OnnxPackage, name: str) -> None:
        """Put a file of an earlier package into this one, without a copy where the disk can."""
        link_or_copy(earlier.root / name, self.path(name))

    def save_model(self, model: ir.Model, earlier: OnnxPackage) -> None:
        """Write a model that was made of an earlier package's, and bring carried files along."""
        save_model(model, earlier, self.root)
        self.bring_carried(earlier)

    def bring_carried(self, earlier: OnnxPackage) -> None:
        """Put the files that an earlier package has of its model directory into this one."""
        for name in CARRIED_FILES:
            if name in earlier.manifest.files:
                self.bring_along(earlier, name)

    def require_free(self, needed_bytes: int) -> None:
        """Fail now rather than in the middle of writing if the disk has no room for so many bytes.

        Raises:
            PackageError: Less than that is free.
        """
        self._staged.require_free(needed_bytes)

    def finish(
        self, manifest: Manifest, vectors: Sequence[VectorSet], corpus: Sequence[CorpusSample] = ()
    ) -> OnnxPackage:
        """Stage vectors and manifest, read everything back, and publish the package.

        Raises:
            PackageError: model.onnx was not written, or a file reads back differently from what was
                written.
        """
        staged = self.stage(manifest, vectors, corpus)
        # Read back as any reader would: what cannot be opened is not published.
        OnnxPackage.open(self.root, staged=True)
        return self.publish(staged)

    def stage(
        self, manifest: Manifest, vectors: Sequence[VectorSet], corpus: Sequence[CorpusSample] = ()
    ) -> Manifest:
        """Write vectors and manifest, so that `root` can be opened as a package and tried.

        Args:
            manifest: What to record; its `files` are filled in here.
            vectors: The recorded runs.
            corpus: The regression corpus; without any sample there is no file of it.

        Returns:
            The manifest as written.

        Raises:
            PackageError: model.onnx was not written.
        """
        if not self.path(MODEL_NAME).is_file():
            raise PackageError(f"{self._output}: nothing was written to {MODEL_NAME}.")
        write_vectors(self.path(VECTORS_NAME), vectors)
        # No sample, no file: an empty corpus would have to be listed and read.
        if corpus:
            write_corpus(self.path(CORPUS_NAME), corpus)
        # Last of all: a directory without a manifest is not a package, whatever stopped the
        # writing.
        staged = replace(manifest, files=sealed(self.root).digests())
        sealed(self.root).write(manifest_text(staged))
        return staged

    def publish(self, manifest: Manifest) -> OnnxPackage:
        """Move the staged package to its destination in one step.

        Args:
            manifest: The staged manifest, or the same with what was learned since.
        """
        # The proof is learned between staging and here.
        sealed(self.root).write(manifest_text(manifest))
        # Digests were computed from these very files.
        written = OnnxPackage.open(self.root, check_digests=False, staged=True)
        self._staged.commit()
        return replace(written, root=self._output)


def replace_corpus(package: OnnxPackage, corpus: Sequence[CorpusSample]) -> OnnxPackage:
    """Replace the package, in one step, by one with this corpus.

    Raises:
        PackageError: It cannot be written, or the disk is full. What was there is still there.
    """
    with PackageWriter(package.root) as writer:
        for name in (MODEL_NAME, MODEL_DATA_NAME):
            if name in package.manifest.files:
                writer.bring_along(package, name)
        writer.bring_carried(package)
        return writer.finish(package.manifest, package.vectors, corpus)


def check_package_output(output: Path, *, made_of: Path | None = None) -> None:
    """Check that a package may be written here, before any long work.

    Args:
        output: The package directory to write.
        made_of: The package that it is made of, and that it is no substitute for.

    Raises:
        PackageError: It is a file, a directory that is not a package, a place that cannot be
            written or replaced, or the package that it is made of.
    """
    replaceable.check_output(output, _PACKAGE)
    if made_of is not None and output.exists() and made_of.exists() and output.samefile(made_of):
        raise PackageError(
            f"{output} is the package that another one is to be made of: it would be lost, and"
            " cannot be made again from that one.",
            hint="Name another --output.",
        )


def check_replaceable(root: Path, what: str, *, hint: str) -> None:
    """Refuse a package that cannot be replaced by one with another part, such as `the corpus`.

    Raises:
        PackageError: It cannot be replaced.
    """
    try:
        check_package_output(root)
    except PackageError as error:
        raise PackageError(f"{what} cannot be written: {error.message}", hint=hint) from error


_PACKAGE = DirectoryKind(
    noun="package",
    manifest=MANIFEST_NAME,
    is_manifest=looks_like_manifest,
    files=frozenset(
        {MANIFEST_NAME, MODEL_NAME, MODEL_DATA_NAME, VECTORS_NAME, CORPUS_NAME, *CARRIED_FILES}
    ),
)
