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
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from moh_deploy import __version__, native
from moh_deploy.errors import PackageError
from moh_deploy.package import MODEL_NAME, TOKENIZER_NAME, OnnxPackage
from moh_deploy.package.manifest_json import MANIFEST_NAME
from moh_deploy.package.writer import TOKENIZER_FILES
from moh_deploy.runtime.models import require_onnxruntime
from moh_deploy.serving.genai.bundle_json import (
    GENAI_BUNDLE_NAME,
    PACKAGE_FOLDER,
    GenaiBundle,
    genai_bundle_text,
    looks_like_genai_bundle,
)
from moh_deploy.serving.genai.config_json import (
    GENAI_CONFIG_NAME,
    GENERATION_CONFIG_NAME,
    GenaiConfig,
    check_decoder,
    search_options,
)
from moh_deploy.system.digest import sha256_of
from moh_deploy.system.replaceable import DirectoryKind, check_output
from moh_deploy.system.staging import StagedDirectory, link_or_copy, sync_file

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
    interface = check_decoder(package.manifest, str(package.root))
    require_onnxruntime(f"package {package.root}", package.manifest.runtime, "onnxruntime-genai")
    _check_tokenizer(package)
    library = native.kernel_library()
    config = GenaiConfig(
        manifest=package.manifest,
        interface=interface,
        model=f"{PACKAGE_FOLDER}/{MODEL_NAME}",
        library=None if library is None else library.name,
        threads=threads,
        search=search_options(package.root / GENERATION_CONFIG_NAME)
        if GENERATION_CONFIG_NAME in package.manifest.files
        else {},
    )
    check_output(output, _kind(library))
    with StagedDirectory(output) as staged:
        bundle = _fill(staged.path, package, config, library)
        staged.commit()
    return bundle


def _kind(library: Path | None) -> DirectoryKind:
    libraries = {"libmoh_ort_cpu.so", *([] if library is None else [library.name])}
    return DirectoryKind(
        noun="genai bundle",
        manifest=GENAI_BUNDLE_NAME,
        is_manifest=looks_like_genai_bundle,
        files=frozenset(
            {GENAI_BUNDLE_NAME, GENAI_CONFIG_NAME, PACKAGE_FOLDER, *TOKENIZER_FILES, *libraries}
        ),
    )


def _fill(
    root: Path, package: OnnxPackage, config: GenaiConfig, library: Path | None
) -> GenaiBundle:
    """Write all files below a directory."""
    (root / PACKAGE_FOLDER).mkdir()
    for name in (*package.manifest.files, MANIFEST_NAME):
        link_or_copy(package.root / name, root / PACKAGE_FOLDER / name)
        if name in TOKENIZER_FILES:
            link_or_copy(package.root / name, root / name)
    if library is not None:
        shutil.copyfile(library, root / library.name)
    (root / GENAI_CONFIG_NAME).write_text(config.text(), encoding="utf-8")
    bundle = GenaiBundle(
        package_sha256=sha256_of(root / PACKAGE_FOLDER / MANIFEST_NAME),
        library=None if library is None else library.name,
        shares_buffer=package.manifest.caches is not None,
        versions={
            "moh-deploy": __version__,
            "onnxruntime": version("onnxruntime"),
            "python": platform.python_version(),
        },
    )
    files = sorted(path for path in root.rglob("*") if path.is_file())
    for path in files:
        sync_file(path)
    digests = {path.relative_to(root).as_posix(): sha256_of(path) for path in files}
    bundle = replace(bundle, files=digests)
    (root / GENAI_BUNDLE_NAME).write_text(genai_bundle_text(bundle), encoding="utf-8")
    sync_file(root / GENAI_BUNDLE_NAME)
    return bundle


def _check_tokenizer(package: OnnxPackage) -> None:
    missing = [
        name
        for name in (TOKENIZER_NAME, TOKENIZER_CONFIG_NAME)
        if name not in package.manifest.files
    ]
    if missing:
        raise PackageError(
            f"{package.root} has no {missing[0]}, which genai's tokenizer reads.",
            hint=f"Put it into the model's directory, beside config.json, and export that again;"
            f" save_pretrained of transformers' fast tokenizers writes {TOKENIZER_NAME} and"
            f" {TOKENIZER_CONFIG_NAME}.",
        )
