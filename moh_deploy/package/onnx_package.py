"""An opened package, and the checks that opening it makes."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moh_deploy.errors import PackageError
from moh_deploy.package.facts import check_facts, recorded_facts
from moh_deploy.package.manifest import Manifest
from moh_deploy.package.manifest_json import MANIFEST_NAME, read_manifest
from moh_deploy.package.model_facts import model_facts
from moh_deploy.package.onnx_outline import ExternalTensor, load_without_weights, read_outline
from moh_deploy.package.vectors import (
    CORPUS_NAME,
    VECTORS_NAME,
    CorpusSample,
    VectorSet,
    check_vectors,
    read_corpus,
    read_vectors,
)
from moh_deploy.system.sealed_directory import SealedDirectory
from moh_deploy.system.staging import is_hidden_name

# Check where a package's weights lie: in its model, or in the one file beside it that is listed.
#
# Whatever else a model names would be read without a digest, from anywhere on this machine.

MODEL_NAME = "model.onnx"
MODEL_DATA_NAME = "model.onnx.data"


def check_external_data(root: Path, manifest: Manifest, tensors: Sequence[ExternalTensor]) -> None:
    """Check that all external data is in `model.onnx.data`, that this is listed, and long enough.

    Args:
        root: The package, whose listed files are there.
        tensors: Those of the model with external data.

    Raises:
        PackageError: A tensor has its data elsewhere.
    """
    if not tensors:
        return
    for tensor in tensors:
        # A path, relative to the model, that could lead out of the package.
        location = tensor.entries.get("location", "")
        if location != MODEL_DATA_NAME:
            raise PackageError(
                f"{root / MODEL_NAME}: the data of {_tensor_text(tensor)} is in '{location}',"
                f" expected '{MODEL_DATA_NAME}', the one file that weights may be in."
            )
    if MODEL_DATA_NAME not in manifest.files:
        raise PackageError(
            f"{root / MODEL_NAME} has the data of {_tensor_text(tensors[0])} in"
            f" {MODEL_DATA_NAME}, which the manifest does not list: nothing says what it held when"
            " the package was written.",
            hint="Export the model again, or get the package again from where it was made.",
        )
    file_bytes = (root / MODEL_DATA_NAME).stat().st_size
    for tensor in tensors:
        _check_range(root, tensor, file_bytes)


def _check_range(root: Path, tensor: ExternalTensor, file_bytes: int) -> None:
    # Optional in ONNX: without, the data begins at 0 and is as long as shape and dtype say.
    offset = tensor.entries.get("offset", "0")
    length = tensor.entries.get("length", str(tensor.num_bytes))
    # Under 20 digits: longer ones are no offset of any file, and int() of many digits takes time.
    is_number = all(
        name.isascii() and name.isdecimal() and len(name) < 20 for name in (offset, length)
    )
    if not is_number or int(offset) + int(length) > file_bytes or int(length) != tensor.num_bytes:
        raise PackageError(
            f"{root / MODEL_NAME}: the data of {_tensor_text(tensor)} is {length[:40]} bytes from"
            f" byte {offset[:40]} of {MODEL_DATA_NAME}, which has {file_bytes}; expected"
            f" {tensor.num_bytes or 'no'} bytes within it."
        )


def _tensor_text(tensor: ExternalTensor) -> str:
    return f"tensor '{tensor.name[:200]}'" if tensor.name else "a tensor without a name"


@dataclass(frozen=True)
class OnnxPackage:
    """An opened package: its directory, manifest, recorded vectors and regression corpus."""

    root: Path
    manifest: Manifest
    vectors: tuple[VectorSet, ...]
    corpus: tuple[CorpusSample, ...] = ()

    @property
    def model_path(self) -> Path:
        return self.root / MODEL_NAME

    @property
    def gate_names(self) -> tuple[str, ...]:
        """Names of the values that hold the gates, one a layer, in the manifest's order."""
        return tuple(layer.gates for layer in self.manifest.layers)

    @property
    def recorded_sizes(self) -> dict[str, tuple[int, ...]]:
        """The sizes of each dynamic dimension at which the original was run; no other was."""
        return {
            name: tuple(
                sorted(
                    {
                        vector_set.sizes[name]
                        for vector_set in self.vectors
                        if name in vector_set.sizes
                    }
                )
            )
            for name in self.manifest.dims
        }

    @classmethod
    def open(
        cls, root: Path | str, *, check_digests: bool = True, staged: bool = False
    ) -> OnnxPackage:
        """Open a package directory.

        Args:
            root: The directory.
            check_digests: Read every file and compare its sha256 with the manifest's.
            staged: It is still being written, under a hidden name, and its writer asks.

        Raises:
            PackageError: Not a package, one that was never finished, another format version, a file
                missing, changed or unreadable, a model that reads data from a file that is not
                listed, or one that the manifest does not describe.
        """
        root = Path(root)
        _require_directory(root)
        if not staged:
            require_finished(root)
        # From the outside in: each step relies on what the ones before have made sure of.
        manifest_path = root / MANIFEST_NAME
        manifest = read_manifest(manifest_path)
        for name in (MODEL_NAME, VECTORS_NAME):
            if name not in manifest.files:
                raise PackageError(f"{manifest_path}: files has no entry for {name}.")
        for name, digest in manifest.files.items():
            # Before the model is opened, so that no parser sees a file that was changed.
            sealed(root).check(name, digest if check_digests else None, hint=_COPY_AGAIN)
        check_external_data(root, manifest, read_outline(root / MODEL_NAME))
        # Readers believe the manifest and run the model: they have to agree.
        model = load_without_weights(root / MODEL_NAME)
        check_facts(manifest_path, model_facts(manifest, model), shown_by=MODEL_NAME)
        vectors = read_vectors(root / VECTORS_NAME, manifest)
        check_vectors(root / VECTORS_NAME, vectors, manifest)
        check_facts(manifest_path, recorded_facts(manifest, vectors), shown_by=VECTORS_NAME)
        corpus: tuple[CorpusSample, ...] = ()
        if CORPUS_NAME in manifest.files:  # what is not listed is not opened
            corpus = read_corpus(root / CORPUS_NAME, manifest)
            check_vectors(root / CORPUS_NAME, (sample.vectors for sample in corpus), manifest)
        return cls(root, manifest, vectors, corpus)


_COPY_AGAIN = "Copy the package again, or export the model again."


def sealed(root: Path) -> SealedDirectory:
    """Return a package as what it is on the disk."""
    return SealedDirectory(root, MANIFEST_NAME, "the package was written")


def require_finished(root: Path) -> None:
    """Refuse a directory that a writer fills, or left when it was killed.

    Raises:
        PackageError: It is one.
    """
    # Writers fill a hidden directory and rename it: such a name was never published.
    if is_hidden_name(root.resolve().name):
        raise PackageError(
            f"{root} was never finished: this is the name of a directory while it is written."
            " Nothing in it has been proven.",
            hint="Run the command that wrote it again: it removes what was left behind.",
        )


def _require_directory(root: Path) -> None:
    try:
        # Not is_dir(), which calls a directory missing that may not be looked into.
        is_directory = stat.S_ISDIR(root.stat().st_mode)
    except FileNotFoundError as error:
        raise PackageError(f"{root} does not exist, expected a package directory.") from error
    except OSError as error:
        raise PackageError(f"{root} cannot be opened as a package: {error.strerror}.") from error
    if not is_directory:
        is_within = (root.parent / MANIFEST_NAME).is_file()
        raise PackageError(
            f"{root} is a file, expected a package directory.",
            hint=f"It lies in one: name '{root.parent}'." if is_within else None,
        )
