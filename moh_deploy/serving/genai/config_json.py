"""Write `genai_config.json`: what onnxruntime-genai has to know of a model, from its manifest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from moh_deploy.errors import ConfigError, PackageError
from moh_deploy.ops.op_names import KERNEL_DOMAIN, base_domain
from moh_deploy.package import Manifest, TensorInfo
from moh_deploy.runtime.text.interface import TextInterface
from moh_deploy.system.bounded_json import read_json
from moh_deploy.system.json_text import to_json_text

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
        manifest: Of the package.
        interface: Its inputs and outputs.
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
