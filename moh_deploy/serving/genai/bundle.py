"""Write a language model's package as a directory that onnxruntime-genai opens.

    genai_config.json     what `og.Model(DIR)` reads
    libmoh_ort_cpu.so     kernels, which genai takes from the model's own directory alone
    tokenizer.json, ...   what `og.Tokenizer` reads
    package/              the package; genai reads its model.onnx, and `verify` all of it
    bundle.json           digests and versions

Nothing in it names a place outside of it: it may be moved and copied.
"""

import platform
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from shlex import quote
from typing import Literal

from moh_deploy import __version__, native
from moh_deploy.config.strict_json import Strict, decode_strict
from moh_deploy.errors import ConfigError, PackageError
from moh_deploy.ops.op_names import KERNEL_DOMAIN, base_domain
from moh_deploy.package import MODEL_NAME, TOKENIZER_NAME, Manifest, OnnxPackage, TensorInfo
from moh_deploy.package.manifest_json import MANIFEST_NAME
from moh_deploy.package.writer import TOKENIZER_FILES
from moh_deploy.report.document import Document, Table, Text
from moh_deploy.report.report import Report
from moh_deploy.runtime.models import require_onnxruntime
from moh_deploy.runtime.text.interface import TextInterface
from moh_deploy.system.bounded_file import sha256_of
from moh_deploy.system.bounded_json import has_keys, read_json, to_json_text
from moh_deploy.system.replaceable import DirectoryKind, check_output
from moh_deploy.system.sealed_directory import SealedDirectory, link_or_copy
from moh_deploy.system.staging import StagedDirectory

# Write `genai_config.json`: what onnxruntime-genai has to know of a model, from its manifest.

GENAI_CONFIG_NAME = "genai_config.json"
GENERATION_CONFIG_NAME = "generation_config.json"
# What both that file and genai call the same.
_SEARCH = ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty")
_EXPORT_SO = (
    "moh-deploy export MODEL --task text-generation makes a package that generates text, with"
    " these names."
)


def genai_config_text(
    manifest: Manifest,
    interface: TextInterface,
    model: str,
    *,
    library: str | None = None,
    threads: int | None = None,
    search: Mapping[str, object] | None = None,
) -> str:
    """Return the text of a `genai_config.json`.

    Args:
        model: Path of the ONNX file in the bundle.
        library: Path of the kernels in the bundle; None: function bodies run.
        threads: Threads within an operator; None for the runtime's own choice.
        search: How tokens are chosen by default, by genai's names.
    """
    about, (heads, size) = interface.about, _cache_sizes(interface.caches)
    context = context_length(interface)
    decoder = {
        "filename": model,
        "session_options": _session_options(manifest, library, threads),
        "num_hidden_layers": len(interface.caches) // 2,
        "num_attention_heads": max((layer.num_heads for layer in manifest.layers), default=heads),
        "num_key_value_heads": heads,
        "head_size": size,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }
    tokens: dict[str, object] = {
        "type": "decoder",
        "vocab_size": about.vocab_size,
        "context_length": context,
        "eos_token_id": list(about.eos_token_ids),
        "pad_token_id": interface.padding,
        "decoder": decoder,
    }
    if about.bos_token_id is not None:
        tokens["bos_token_id"] = about.bos_token_id
    choice = {
        "do_sample": False,
        **(search or {}),
        "max_length": context,
        # Only such a package takes buffers with room.
        "past_present_share_buffer": manifest.caches is not None,
    }
    return to_json_text({"model": tokens, "search": choice}) + "\n"


def context_length(interface: TextInterface) -> int | None:
    """Return how many tokens genai may hold; it knows no limit of a prompt alone."""
    limits = [interface.about.context_length, interface.longest_prompt]
    return min((limit for limit in limits if limit is not None), default=None)


def _session_options(
    manifest: Manifest, library: str | None, threads: int | None
) -> dict[str, object]:
    """Return options of the session; genai hands on to ONNX Runtime those that it has not."""
    options: dict[str, object] = {}
    if threads is not None:
        options["intra_op_num_threads"] = threads
    if library is not None:
        # The library takes the best instruction set of the machine that it is loaded on.
        options |= {"custom_ops_library": library, "moh.compute_type": manifest.compute_type}
        domains = {name.partition("::")[0] for name in manifest.ops}
        kernels = sorted(domain for domain in domains if base_domain(domain) == KERNEL_DOMAIN)
        if kernels:
            options["moh.domains"] = ",".join(kernels)
    return options


def check_decoder(manifest: Manifest, name: str) -> TextInterface:
    """Return the interface of a package that genai can run.

    Args:
        name: Of the package, for messages.

    Raises:
        PackageError: It is no decoder, or its inputs and outputs have other names.
        ConfigError: It is one that genai has no words for.
    """
    inputs = [tensor.name for tensor in manifest.inputs]
    outputs = [tensor.name for tensor in manifest.outputs]
    caches = [tensor for tensor in inputs if tensor.startswith("past_key_values.")]
    needed = ["input_ids", "attention_mask", *(caches or ["past_key_values.0.key"])]
    made = ["logits", *(cache.replace("past_key_values", "present", 1) for cache in caches)]
    missing = [f"input {tensor}" for tensor in needed if tensor not in inputs]
    missing += [f"output {tensor}" for tensor in made if tensor not in outputs]
    if missing:
        raise PackageError(
            f"{name} is no decoder as genai runs it: it has no {missing[0]}; its inputs are"
            f" {', '.join(inputs[:4])}.",
            hint=_EXPORT_SO,
        )
    foreign = [tensor for tensor in inputs if tensor not in needed]
    if foreign:
        raise PackageError(
            f"{name} takes '{foreign[0]}', which genai would not feed as this model means it.",
            hint=_EXPORT_SO,
        )
    interface = TextInterface.of(manifest, name)
    about = interface.about
    layers = range(len(interface.caches) // 2)
    expected = {f"past_key_values.{n}.{kind}" for n in layers for kind in ("key", "value")}
    numbered = {cache.name for cache in interface.caches}
    if numbered != expected:
        raise PackageError(
            f"{name} has a cache {min(numbered - expected)}, but none of each number below:"
            f" {len(numbered)} caches are keys and values of {len(layers)} layers, from 0 on.",
            hint=_EXPORT_SO,
        )
    if about.context_length is None:
        raise ConfigError(
            f"{name} does not say how many tokens its model takes, and genai has to know.",
            hint="Write max_position_embeddings into the model's config.json, and export it again.",
        )
    if not about.eos_token_ids:
        raise ConfigError(
            f"{name} has no token that ends a text; genai would take token 0 for it.",
            hint="Write eos_token_id into the model's config.json, and export it again.",
        )
    _cache_sizes(interface.caches)
    return interface


def search_options(path: Path) -> dict[str, object]:
    """Return how a model's authors want tokens to be chosen, of what genai knows, too.

    Args:
        path: Its `generation_config.json`; it need not be there.

    Raises:
        PackageError: It cannot be read.
    """
    try:
        content = read_json(path, error=PackageError)
    except FileNotFoundError:
        return {}
    if not isinstance(content, dict):
        raise PackageError(f"{path} is no JSON object.")
    return {name: content[name] for name in _SEARCH if content.get(name) is not None}


def _cache_sizes(caches: Iterable[TensorInfo]) -> tuple[int, int]:
    """Return heads of keys and values, and their size: genai has one number for all layers."""
    sizes = {(cache.shape[1], cache.shape[3]) for cache in caches}
    found = next(iter(sizes))
    if len(sizes) > 1 or not all(isinstance(size, int) for size in found):
        words = " and ".join(f"{heads} heads of {size}" for heads, size in sorted(sizes, key=str))
        raise ConfigError(f"caches have {words}; genai has one number for all layers.")
    return int(found[0]), int(found[1])


# The `bundle.json` of a bundle for genai: what the directory holds and was made with.

GENAI_BUNDLE_NAME = "bundle.json"
GENAI_BUNDLE_VERSION = 1
PACKAGE_FOLDER = "package"
_WRITE_ONE = "Write it again: moh-deploy bundle PACKAGE --target genai -o DIR."


@dataclass(frozen=True)
class GenaiBundle(Strict):
    """The content of `bundle.json` for genai."""

    package_sha256: str  # digest of the package's manifest, which has those of its files
    library: str | None  # file name of the kernels; None: function bodies run
    shares_buffer: bool  # whether caches are buffers that are written in place
    versions: dict[str, str]  # of what it was made with: moh-deploy, ONNX Runtime, Python
    # Path in the bundle to sha256, for each file but this one.
    files: dict[str, str] = field(default_factory=dict)
    target: Literal["genai"] = "genai"  # what opens it
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
        _sealed(root).check(name, digest, hint=_WRITE_ONE)
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
    bundle = GenaiBundle(
        package_sha256=sha256_of(root / PACKAGE_FOLDER / MANIFEST_NAME),
        library=library,
        shares_buffer=shares_buffer,
        versions={
            "moh-deploy": __version__,
            "onnxruntime": version("onnxruntime"),
            "python": platform.python_version(),
        },
        files=_sealed(root).digests(),
    )
    _sealed(root).write(to_json_text(asdict(bundle)) + "\n")
    return bundle


def _sealed(root: Path) -> SealedDirectory:
    return SealedDirectory(root, GENAI_BUNDLE_NAME, "the bundle was written")


@dataclass(frozen=True)
class GenaiBundleReport(Report):
    """A bundle for genai that was written, and how it is opened."""

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
