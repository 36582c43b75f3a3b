"""Write `genai_config.json`: what onnxruntime-genai has to know of a model, from its manifest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class GenaiConfig:
    """A `genai_config.json` that is to be written.

    Attributes:
        manifest: Of the package.
        interface: Its inputs and outputs.
        model: Path of the ONNX file in the bundle.
        library: Of the kernels, likewise; None: function bodies run.
        threads: Threads within an operator; None for the runtime's own choice.
        search: How tokens are chosen where nobody says, by genai's names.
    """

    manifest: Manifest
    interface: TextInterface
    model: str
    library: str | None = None
    threads: int | None = None
    search: Mapping[str, object] = field(default_factory=dict)

    def text(self) -> str:
        """Return the file's text."""
        about, context = self.interface.about, self._context_length()
        model: dict[str, object] = {
            "type": "decoder",
            "vocab_size": about.vocab_size,
            "context_length": context,
            "eos_token_id": list(about.eos_token_ids),
            "pad_token_id": self.interface.padding,
            "decoder": self._decoder(),
        }
        if about.bos_token_id is not None:
            model["bos_token_id"] = about.bos_token_id
        search = {
            "do_sample": False,
            **self.search,
            "max_length": context,
            # Buffers with room are what such a package takes, and what no other does.
            "past_present_share_buffer": self.manifest.caches is not None,
        }
        return to_json_text({"model": model, "search": search}) + "\n"

    def _context_length(self) -> int | None:
        """Return how many tokens genai may hold; it knows no limit of a prompt alone."""
        limits = self.interface.about.context_length, self.interface.longest_prompt
        return min((one for one in limits if one is not None), default=None)

    def _decoder(self) -> dict[str, object]:
        heads, size = _cache_sizes(self.interface.caches)
        return {
            "filename": self.model,
            "session_options": self._session_options(),
            "num_hidden_layers": len(self.interface.caches) // 2,
            "num_attention_heads": max(
                (layer.num_heads for layer in self.manifest.layers), default=heads
            ),
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

    def _session_options(self) -> dict[str, object]:
        """Return options of the session; genai hands on to ONNX Runtime those that it has not."""
        options: dict[str, object] = {}
        if self.threads is not None:
            options["intra_op_num_threads"] = self.threads
        if self.library is not None:
            # The library takes the best instruction set of the machine that it is loaded on.
            options["custom_ops_library"] = self.library
            options["moh.compute_type"] = self.manifest.compute_type
            domains = {name.partition("::")[0] for name in self.manifest.ops}
            kernels = sorted(one for one in domains if base_domain(one) == KERNEL_DOMAIN)
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
    _check_names(manifest, name)
    interface = TextInterface.of(manifest, name)
    about = interface.about
    layers = range(len(interface.caches) // 2)
    expected = {f"past_key_values.{n}.{kind}" for n in layers for kind in ("key", "value")}
    numbered = {one.name for one in interface.caches}
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


def _check_names(manifest: Manifest, name: str) -> None:
    """Say what is missing, and what is there that genai does not feed."""
    inputs = [one.name for one in manifest.inputs]
    outputs = [one.name for one in manifest.outputs]
    missing = [
        *(f"input {one}" for one in ("input_ids", "attention_mask") if one not in inputs),
        *(["output logits"] if "logits" not in outputs else []),
    ]
    caches = [one for one in inputs if one.startswith("past_key_values.")]
    if not caches:
        missing.append("input past_key_values.0.key")
    pairs = {one: one.replace("past_key_values", "present", 1) for one in caches}
    missing += [f"output {present}" for present in pairs.values() if present not in outputs]
    if missing:
        raise PackageError(
            f"{name} is no decoder as genai runs it: it has no {missing[0]}; its inputs are"
            f" {', '.join(inputs[:4])}.",
            hint=_EXPORT_SO,
        )
    foreign = [one for one in inputs if one not in ("input_ids", "attention_mask", *caches)]
    if foreign:
        raise PackageError(
            f"{name} takes '{foreign[0]}', which genai would not feed as this model means it.",
            hint=_EXPORT_SO,
        )


def _cache_sizes(caches: Iterable[TensorInfo]) -> tuple[int, int]:
    """Return heads of keys and values, and their size: genai has one number for all layers."""
    sizes = {(one.shape[1], one.shape[3]) for one in caches}
    found = next(iter(sizes))
    if len(sizes) > 1 or not all(isinstance(one, int) for one in found):
        words = " and ".join(f"{heads} heads of {size}" for heads, size in sorted(sizes, key=str))
        raise ConfigError(f"caches have {words}; genai has one number for all layers.")
    return int(found[0]), int(found[1])
