"""Write a language model's package as a directory that onnxruntime-genai opens.

    genai_config.json     what `og.Model(DIR)` reads
    libmoh_ort_cpu.so     kernels, which genai takes from the model's own directory alone
    tokenizer.json, ...   what `og.Tokenizer` reads
    package/              the package; genai reads its model.onnx, and `verify` all of it
    bundle.json           digests and versions

Nothing in it names a place outside of it: it may be moved and copied.
"""

from __future__ import annotations

import platform
import shutil
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from shlex import quote
from typing import Literal

from moh_deploy import __version__, native
from moh_deploy.config.strict_json import Strict, decode_strict
from moh_deploy.errors import PackageError
from moh_deploy.package import MODEL_NAME, TOKENIZER_NAME, OnnxPackage
from moh_deploy.package.manifest_json import MANIFEST_NAME
from moh_deploy.package.writer import TOKENIZER_FILES
from moh_deploy.report.document import Document, Table, Text
from moh_deploy.report.report import Report
from moh_deploy.runtime.models import require_onnxruntime
from moh_deploy.serving.genai.config_json import (
    GENAI_CONFIG_NAME,
    GENERATION_CONFIG_NAME,
    check_decoder,
    genai_config_text,
    search_options,
)
from moh_deploy.system.bounded_json import has_keys, read_json
from moh_deploy.system.digest import sha256_of
from moh_deploy.system.json_text import to_json_text
from moh_deploy.system.replaceable import DirectoryKind, check_output
from moh_deploy.system.staging import StagedDirectory, link_or_copy, sync_file

# The `bundle.json` of a bundle for genai: what the directory holds and was made with.

GENAI_BUNDLE_NAME = "bundle.json"
GENAI_BUNDLE_VERSION = 1
PACKAGE_FOLDER = "package"
_WRITE_ONE = "Write it again: moh-deploy bundle PACKAGE --target genai -o DIR."


@dataclass(frozen=True)
class GenaiBundle(Strict):
    """`bundle.json`.

    Attributes:
        package_sha256: Digest of the package's manifest, which has those of its files.
        library: File name of the kernels; None: it has none, and function bodies run.
        shares_buffer: Whether caches are buffers that are written in place.
        versions: Of what it was made with: moh-deploy, ONNX Runtime, Python.
        files: Path in the bundle to sha256, for each file but this one.
        target: What opens it.
        format_version: Of the directory.
    """

    package_sha256: str
    library: str | None
    shares_buffer: bool
    versions: dict[str, str]
    files: dict[str, str] = field(default_factory=dict)
    target: Literal["genai"] = "genai"
    format_version: int = GENAI_BUNDLE_VERSION


def is_genai_bundle(root: Path) -> bool:
    """Tell whether `moh-deploy bundle --target genai` wrote a directory, changed or not."""
    return has_keys(root / GENAI_BUNDLE_NAME, {"format_version", "target", "shares_buffer"})


def read_genai_bundle(root: Path) -> GenaiBundle:
    """Read a bundle, and check that each of its files is as it was written.

    Raises:
        PackageError: It is no bundle, of another format version, or changed.
    """
    path = root / GENAI_BUNDLE_NAME
    try:
        content = read_json(path, error=PackageError)
    except OSError as error:
        raise PackageError(f"{path} cannot be read: {error.strerror}.", hint=_WRITE_ONE) from error
    bundle = decode_strict(GenaiBundle, content, f"{path}", error=PackageError, hint=_WRITE_ONE)
    if bundle.format_version != GENAI_BUNDLE_VERSION:
        raise PackageError(
            f"{path}: format_version is {bundle.format_version}, expected {GENAI_BUNDLE_VERSION}.",
            hint=_WRITE_ONE,
        )
    for name, digest in bundle.files.items():
        place = PurePosixPath(name)
        # A path that leads out could make another file be read.
        if place.is_absolute() or ".." in place.parts:
            raise PackageError(f"{path}: names '{name[:100]}', expected a path in it.")
        try:
            found = sha256_of(root / name)
        except OSError as error:
            raise PackageError(
                f"{root / name} cannot be read: {error.strerror}.", hint=_WRITE_ONE
            ) from error
        if found != digest:
            raise PackageError(
                f"{root / name} has changed since the bundle was written: its sha256 is {found},"
                f" expected {digest}.",
                hint=_WRITE_ONE,
            )
    return bundle


TOKENIZER_CONFIG_NAME = "tokenizer_config.json"


def write_genai_bundle(
    package: OnnxPackage, output: Path, *, threads: int | None = None
) -> GenaiBundle:
    """Write the bundle of a package; it appears whole or not at all.

    Args:
        threads: Threads within an operator; None for the runtime's own choice.

    Raises:
        ConfigError: genai has no words for something of this decoder, or it was tuned for another
            runtime.
        PackageError: It is no decoder, has no tokenizer, or cannot be written.
    """
    manifest = package.manifest
    interface = check_decoder(manifest, str(package.root))
    require_onnxruntime(f"package {package.root}", manifest.runtime, "onnxruntime-genai")
    for name in (TOKENIZER_NAME, TOKENIZER_CONFIG_NAME):
        if name not in manifest.files:
            raise PackageError(
                f"{package.root} has no {name}, which genai's tokenizer reads.",
                hint="Put it into the model's directory, beside config.json, and export that again;"
                f" save_pretrained of transformers' fast tokenizers writes {TOKENIZER_NAME} and"
                f" {TOKENIZER_CONFIG_NAME}.",
            )
    library = native.kernel_library()
    library_name = None if library is None else library.name
    config = genai_config_text(
        manifest,
        interface,
        f"{PACKAGE_FOLDER}/{MODEL_NAME}",
        library=library_name,
        threads=threads,
        search=search_options(package.root / GENERATION_CONFIG_NAME)
        if GENERATION_CONFIG_NAME in manifest.files
        else {},
    )
    own = {GENAI_BUNDLE_NAME, GENAI_CONFIG_NAME, PACKAGE_FOLDER, *TOKENIZER_FILES}
    libraries = {"libmoh_ort_cpu.so", *filter(None, [library_name])}
    kind = DirectoryKind(
        noun="genai bundle",
        manifest=GENAI_BUNDLE_NAME,
        is_manifest=lambda path: is_genai_bundle(path.parent),
        files=frozenset(own | libraries),
    )
    check_output(output, kind)
    with StagedDirectory(output) as staged:
        root = staged.path
        (root / PACKAGE_FOLDER).mkdir()
        for name in (*manifest.files, MANIFEST_NAME):
            link_or_copy(package.root / name, root / PACKAGE_FOLDER / name)
            if name in TOKENIZER_FILES:
                link_or_copy(package.root / name, root / name)
        if library is not None:
            shutil.copyfile(library, root / library.name)
        (root / GENAI_CONFIG_NAME).write_text(config, encoding="utf-8")
        bundle = _described(root, library_name, shares_buffer=manifest.caches is not None)
        staged.commit()
    return bundle


def _described(root: Path, library: str | None, *, shares_buffer: bool) -> GenaiBundle:
    """Write `bundle.json`, with the digests of all other files, and sync these."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    bundle = GenaiBundle(
        package_sha256=sha256_of(root / PACKAGE_FOLDER / MANIFEST_NAME),
        library=library,
        shares_buffer=shares_buffer,
        versions={
            "moh-deploy": __version__,
            "onnxruntime": version("onnxruntime"),
            "python": platform.python_version(),
        },
        files={path.relative_to(root).as_posix(): sha256_of(path) for path in files},
    )
    path = root / GENAI_BUNDLE_NAME
    path.write_text(to_json_text(asdict(bundle)) + "\n", encoding="utf-8")
    for file in (*files, path):
        sync_file(file)
    return bundle


@dataclass(frozen=True)
class GenaiBundleReport(Report):
    """A bundle for genai that was written, and how it is opened.

    Attributes:
        root: Where.
        bundle: What it holds.
    """

    root: Path
    bundle: GenaiBundle

    def document(self) -> Document:
        """Return what it says."""
        bundle = self.bundle
        rows = [
            ("kernels", bundle.library or "none: function bodies run"),
            ("caches", "one buffer, in place" if bundle.shares_buffer else "copied at every step"),
            ("files", str(len(bundle.files) + 1)),
        ]
        return Document(
            "bundle",
            (
                Text(f"bundle {self.root}"),
                Table("what genai will run", ("what", ""), rows),
                Text(f"open it: onnxruntime_genai.Model({str(self.root)!r})"),
                Text(f"compare its tokens: moh-deploy verify {quote(str(self.root))}"),
            ),
        )
