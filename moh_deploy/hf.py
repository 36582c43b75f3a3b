"""Packages as models of Hugging Face's transformers: for `pipeline` and `generate`.

    model = MoHModelForCausalLM.from_pretrained("build/llm")
    writer = pipeline("text-generation", model=model, tokenizer=AutoTokenizer.from_pretrained(...))

Raises:
    BackendError: transformers is not installed.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import numpy as np

from moh_deploy.errors import BackendError, ConfigError, PackageError
from moh_deploy.package import Manifest, OnnxPackage, Runtime
from moh_deploy.runtime.base import Runner, Variant
from moh_deploy.runtime.kernel_use import Kernels
from moh_deploy.runtime.models import runtime_for
from moh_deploy.runtime.open_runner import opened_package
from moh_deploy.runtime.tensors import as_array, shared_tensor
from moh_deploy.runtime.text.interface import TextInterface
from moh_deploy.system.bounded_json import read_json
from moh_deploy.system.npz import Array

if _missing := [name for name in ("torch", "transformers") if not find_spec(name)]:
    raise BackendError(
        f"not installed: {', '.join(_missing)}.", hint="pip install 'moh-deploy[transformers]'"
    )

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    GenerationConfig,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast, ImageClassifierOutput

_FIRST_ROOM = 64
"""The least tokens that caches which are written in place have room for beside a prompt."""


class PackageConfig(PreTrainedConfig):
    """The config of the model that a package was made from, as far as the package knows it."""

    model_type = "moh_deploy"


class _PackageModel(PreTrainedModel):
    """A package that transformers takes for a model in PyTorch: it has no weights of its own."""

    config_class = PackageConfig
    config: PackageConfig

    def __init__(self, config: PackageConfig, package: OnnxPackage, runner: Runner) -> None:
        super().__init__(config)
        self.package, self.runner = package, runner

    @classmethod
    def from_pretrained(
        cls,
        package_dir: Path | str,
        *,
        runtime: Runtime | None = None,
        kernels: Kernels = "auto",
        threads: int | None = None,
        **config: Any,
    ) -> Self:
        """Load a package; nothing is downloaded.

        Args:
            package_dir: What `moh-deploy export` wrote.
            runtime: What runs it; None for what it was tuned for, or else ONNX Runtime.
            kernels: What runs MoH nodes: `auto`, `off` or `require`.
            threads: Threads within an operator; None lets the runtime choose.
            config: Values of the config, such as `id2label`, beside those that the package has.

        Raises:
            PackageError: It is no package, or of no such model.
            ConfigError: It takes or returns more than such a model.
            BackendError: The runtime is not installed, or does not take the model.
        """
        package = OnnxPackage.open(package_dir)
        known = {**cls._config_of(package), **_own_config(package), **config}
        asked = runtime_for(runtime, package.manifest.runtime)
        changing = issubclass(cls, GenerationMixin)
        variant = Variant(runtime=asked, kernels=kernels, threads=threads, sizes_change=changing)
        return cls(PackageConfig(**known), package, opened_package(package).open(variant))

    @classmethod
    def _config_of(cls, package: OnnxPackage) -> dict[str, Any]:
        """Return the values of the config that the package knows; raises as `from_pretrained`."""
        return {}

    @property
    def device(self) -> torch.device:
        """Where results are; inputs that are elsewhere are copied."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the logits, and of images."""
        (found,) = (o.dtype for o in self.package.manifest.outputs if o.name == self._logits)
        dtype: torch.dtype = getattr(torch, found)
        return dtype

    @property
    def _logits(self) -> str:
        return _logits_of(self.package.manifest, str(self.package.root))


def _own_config(package: OnnxPackage) -> dict[str, Any]:
    """Return the `config.json` that came with the model, without what names its class."""
    if "config.json" not in package.manifest.files:
        return {}
    content = read_json(package.root / "config.json", error=PackageError)
    if not isinstance(content, dict):
        raise PackageError(f"{package.root / 'config.json'} is no JSON object.")
    of_class = {"architectures", "auto_map", "dtype", "model_type", "torch_dtype"}
    return {name: value for name, value in content.items() if name not in of_class}


def _logits_of(manifest: Manifest, name: str) -> str:
    names = [output.name for output in manifest.outputs]
    if "logits" not in names and len(names) > 1:
        raise ConfigError(f"{name} returns {', '.join(names)}, expected `logits`, or one output.")
    return "logits" if "logits" in names else names[0]


class MoHModelForImageClassification(_PackageModel):
    """A package that takes images and returns logits, for `pipeline("image-classification")`."""

    main_input_name = "pixel_values"

    @classmethod
    def _config_of(cls, package: OnnxPackage) -> dict[str, Any]:
        manifest, name = package.manifest, str(package.root)
        if len(manifest.inputs) != 1:
            names = ", ".join(info.name for info in manifest.inputs)
            raise ConfigError(f"{name} takes {names}, expected one input, images.")
        logits = _logits_of(manifest, name)
        (shape,) = (output.shape for output in manifest.outputs if output.name == logits)
        if len(shape) != 2 or not isinstance(shape[1], int):
            raise ConfigError(f"{name} returns {logits} {list(shape)}, expected [batch, classes].")
        return {"num_labels": shape[1]}

    def forward(self, pixel_values: torch.Tensor, **unused: Any) -> ImageClassifierOutput:
        """Return logits [batch, classes] of images, of the shape that the package takes.

        Raises:
            ConfigError: They do not fit.
        """
        _refuse(unused)
        (spec,) = self.package.manifest.inputs
        images = as_array(pixel_values.cpu(), spec.name)
        results = self.runner.run({spec.name: images})
        logits = shared_tensor(results[self._logits]).to(pixel_values.device)
        return ImageClassifierOutput(logits=logits)


class PackageCache:
    """Keys and values of a text so far, which stay in the runtime: transformers' place for a cache.

    Args:
        interface: Says which caches there are.
        runner: The model.
        batch: How many texts there are.
    """

    # What `generate` asks of a cache.
    is_linear = (False,)
    is_compileable = False
    is_croppable = False

    def __init__(self, interface: TextInterface, runner: Runner, batch: int) -> None:
        self.interface = interface
        self.length = self.room = 0  # tokens that it holds, and that it has places for
        self.steps = runner.steps(interface.empty_caches(batch, 0), interface.following)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return how many tokens it holds, padding included."""
        return self.length

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Go on with these rows, in this order."""
        rows = as_array(beam_idx.cpu(), "beam_idx")
        self.steps.change(lambda array: array[rows])

    def step(self, input_ids: Array, attention_mask: Array) -> dict[str, Array]:
        """Add tokens [batch, seq], and return the model's results but the caches."""
        self.length += input_ids.shape[1]
        if self.interface.in_place and self.length > self.room:
            self._grow()
        return self.steps({"input_ids": input_ids, "attention_mask": attention_mask})

    def _grow(self) -> None:
        """Twice the places at a time, so that a text is copied a few times only."""
        most = self.interface.about.context_length
        room = max(2 * self.length, self.length + _FIRST_ROOM)
        self.room = room if most is None else min(room, most)

        def longer(array: Array) -> Array:
            more = np.zeros((*array.shape[:2], self.room - array.shape[2], array.shape[3]))
            return np.concatenate([array, more.astype(array.dtype)], axis=2)

        self.steps.change(longer)


class MoHModelForCausalLM(_PackageModel, GenerationMixin):
    """A package that `export --task text-generation` made, for `generate` and its pipeline.

    Greedy search, sampling, beams, left padding and streaming work as with any model. Assisted
    generation does not: it takes tokens back, and this cache does not.
    """

    def __init__(self, config: PackageConfig, package: OnnxPackage, runner: Runner) -> None:
        super().__init__(config, package, runner)
        self.interface = TextInterface.of(package.manifest, str(package.root))
        about = self.interface.about
        settings: dict[str, Any] = {
            "eos_token_id": list(about.eos_token_ids) or None,
            "bos_token_id": about.bos_token_id,
        }
        if "generation_config.json" in package.manifest.files:
            self.generation_config = GenerationConfig.from_pretrained(str(package.root))
        else:
            self.generation_config = GenerationConfig()
        for name, value in settings.items():
            if getattr(self.generation_config, name) is None:
                setattr(self.generation_config, name, value)
        if self.generation_config.pad_token_id is None:
            self.generation_config.pad_token_id = self.interface.padding

    @classmethod
    def _config_of(cls, package: OnnxPackage) -> dict[str, Any]:
        interface = TextInterface.of(package.manifest, str(package.root))
        heads, size = interface.caches[0].shape[1], interface.caches[0].shape[3]
        return {
            "vocab_size": interface.about.vocab_size,
            "max_position_embeddings": interface.about.context_length,
            "num_hidden_layers": len(interface.caches) // 2,
            "num_key_value_heads": heads,
            "head_dim": size,
        }

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        cache: PackageCache | None = None,
        use_cache: bool | None = None,
        **unused: Any,
    ) -> CausalLMOutputWithPast:
        """Return logits [batch, seq, vocab] of tokens behind a cache, and the cache with them.

        Args:
            input_ids: Tokens [batch, seq], int64.
            attention_mask: 1 for tokens and 0 for padding, cached ones included, [batch, past +
                seq]; None for no padding.
            cache: What an earlier call returned; it is changed. None: these are the first tokens.
            use_cache: Return the cache; it is returned unless this is False.

        Raises:
            ConfigError: There are more tokens than the model takes, or tokens that it has not.
        """
        _refuse(unused)
        batch, seq = input_ids.shape
        if cache is None:
            cache = PackageCache(self.interface, self.runner, batch)
        total, about = cache.length + seq, self.interface.about
        for count, most, what in (
            (seq, self.interface.longest_prompt, "at once"),
            (total, about.context_length, "together"),
        ):
            if most is not None and count > most:
                raise ConfigError(f"{count} tokens are given; the package takes {most} {what}.")
        if attention_mask is None:
            attention_mask = torch.ones(batch, total, dtype=torch.int64)
        mask = as_array(attention_mask.cpu(), "attention_mask").astype(np.int64, copy=False)
        results = cache.step(as_array(input_ids.cpu(), "input_ids"), mask)
        logits = shared_tensor(results["logits"]).to(input_ids.device)
        return CausalLMOutputWithPast(logits=logits, cache=None if use_cache is False else cache)

    def _prepare_cache_for_generation(
        self,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        generation_mode: object,
        batch_size: int,
        max_cache_length: int,
    ) -> None:
        """Hand `generate` a cache of this form in place of its own."""
        if generation_config.use_cache is False or model_kwargs.get("cache") is not None:
            return
        rows = batch_size * max(generation_config.num_beams, generation_config.num_return_sequences)
        model_kwargs["cache"] = PackageCache(self.interface, self.runner, rows)


def _refuse(unused: dict[str, Any]) -> None:
    """Refuse what a package cannot return; `return_dict` and False change nothing.

    Raises:
        ConfigError: Something is asked for.
    """
    asked = [name for name, value in unused.items() if value is not None and value is not False]
    if wrong := [name for name in asked if name != "return_dict"]:
        raise ConfigError(f"{wrong[0]} is given, which a package does not take.")


AutoConfig.register("moh_deploy", PackageConfig, exist_ok=True)
AutoModelForCausalLM.register(PackageConfig, MoHModelForCausalLM, exist_ok=True)
AutoModelForImageClassification.register(
    PackageConfig, MoHModelForImageClassification, exist_ok=True
)
