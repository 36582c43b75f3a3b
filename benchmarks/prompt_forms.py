"""The decoders of decoder_prompt.py: exported once, loaded by the process of each candidate."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from model_subjects import HERE, Prepared, Request, Subject, prepare
from prompt_decoder import MASKS
from safetensors.torch import save_file
from torch import Tensor

import moh_deploy
from moh_deploy.config.export_config import resolved_config
from moh_deploy.config.options import ExportOptions
from moh_deploy.frontend.emit import write_plain_onnx
from moh_deploy.frontend.load.load import load
from moh_deploy.frontend.load.model import LoadedModel
from moh_deploy.package import OnnxPackage
from moh_deploy.system.npz import Array

LLAMA3 = "moh-llama3"
FORMS = (*MASKS, LLAMA3)
_CODE = Path("MoH-LLaMA3", "Inference_code", "modeling_llama.py")


@dataclass(frozen=True)
class Sizes:
    """Sizes of the decoders; the perceptron is three times as wide as the rest."""

    depth: int = 4
    dim: int = 512
    heads: int = 8
    kv_heads: int = 2
    vocab: int = 8192
    positions: int = 8192  # the longest prompt of MoH-LLaMA3


@dataclass(frozen=True)
class Form:
    """A decoder in a folder.

    Attributes:
        name: How its mask is written, or `moh-llama3`: published code.
        folder: Where its package and its plain export lie.
        original: A clone of the original repository; for `moh-llama3` alone.
    """

    name: str
    folder: Path
    sizes: Sizes
    original: Path | None

    def export(self) -> None:
        """Write weights, package and plain export, unless they are there."""
        if (self.folder / "plain" / "model.onnx").exists():
            return
        if self.name != LLAMA3:
            prepare(self._subject, Request(overrides=self._overrides), self.folder)
            return
        assert self.original is not None
        _write_directory(self._directory, self.sizes, self.original / _CODE)
        package = self.folder / "package"
        shutil.rmtree(package, ignore_errors=True)
        moh_deploy.export(self._directory, package, task="text-generation", trust_code=True)
        plain = self.folder / "plain"
        plain.mkdir()
        write_plain_onnx(self._loaded(), OnnxPackage.open(package), plain / "model.onnx")

    def prepared(self) -> Prepared:
        """Load the module beside its package and its plain export."""
        package = self.folder / "package"
        if self.name != LLAMA3:
            weights = self.folder / "random_weights.pt"
            request = Request(
                overrides=self._overrides, checkpoint=weights, package=package, plain=False
            )
            return prepare(self._subject, request, self.folder)
        made = self.exported()
        loaded = replace(self._loaded(), call=made.package.manifest.call)
        return replace(made, module=_Called(loaded.callable()))

    def exported(self) -> Prepared:
        """Return package and plain export alone: a module would be memory that nothing reads."""
        package = OnnxPackage.open(self.folder / "package")
        return Prepared(torch.nn.Module(), package, self.folder / "plain" / "model.onnx")

    def inputs(self, length: int) -> dict[str, Array]:
        """Return a prompt without padding, behind empty caches where there are some."""
        sizes = {"batch": 1, "seq": length, "total": length, "past": 0}
        made: dict[str, Array] = {}
        for info in OnnxPackage.open(self.folder / "package").manifest.inputs:
            shape = [sizes[dim] if isinstance(dim, str) else dim for dim in info.shape]
            made[info.name] = np.ones(shape, info.dtype)
        ids = next(iter(made))
        made[ids] = np.random.default_rng(0).integers(1, self.sizes.vocab, made[ids].shape)
        return made

    @property
    def _directory(self) -> Path:
        return self.folder / "model"

    @property
    def _subject(self) -> Subject:
        return Subject(self.name, HERE / "configs" / "prompt_decoder.yaml", None, 1)

    @property
    def _overrides(self) -> tuple[str, ...]:
        sizes = self.sizes
        given = {
            "mask": self.name,
            "depth": sizes.depth,
            "dim": sizes.dim,
            "num_heads": sizes.heads,
            "num_kv_heads": sizes.kv_heads,
            "vocab_size": sizes.vocab,
        }
        return tuple(f"model.kwargs.{name}={value}" for name, value in given.items())

    def _loaded(self) -> LoadedModel:
        options = ExportOptions(self._directory, self.folder / "unused")
        model = resolved_config(options).model
        return load(self._directory, model, task="text-generation", trust_code=True)


class _Called(torch.nn.Module):
    """What runs a model on its inputs one by one, as a module."""

    def __init__(self, call: Callable[..., object]) -> None:
        super().__init__()
        self.call = call

    def forward(self, *inputs: Tensor) -> object:
        return self.call(*inputs)


def _write_directory(directory: Path, sizes: Sizes, code: Path) -> None:
    """Write a model directory of the published code, with random weights."""
    directory.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(code, directory / "modeling_llama.py")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "auto_map": {"AutoModelForCausalLM": "modeling_llama.LlamaForCausalLM"},
        "model_type": "llama",
        "vocab_size": sizes.vocab,
        "hidden_size": sizes.dim,
        "intermediate_size": 3 * sizes.dim,
        "num_hidden_layers": sizes.depth,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "max_position_embeddings": sizes.positions,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "torch_dtype": "float32",
        "transformers_version": "4.37.0",
    }
    (directory / "config.json").write_text(json.dumps(config))
    draws = torch.Generator().manual_seed(0)

    def weight(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=draws) / columns**0.5

    dim, inner, kv_dim = sizes.dim, 3 * sizes.dim, sizes.dim // sizes.heads * sizes.kv_heads
    shapes = {
        "self_attn.q_proj": (dim, dim),
        "self_attn.k_proj": (kv_dim, dim),
        "self_attn.v_proj": (kv_dim, dim),
        "self_attn.o_proj": (dim, dim),
        "mlp.gate_proj": (inner, dim),
        "mlp.up_proj": (inner, dim),
        "mlp.down_proj": (dim, inner),
    }
    state = {
        "model.embed_tokens.weight": torch.randn(sizes.vocab, dim, generator=draws),
        "model.norm.weight": torch.ones(dim),
        "lm_head.weight": weight(sizes.vocab, dim),
    }
    for layer in range(sizes.depth):
        at = f"model.layers.{layer}"
        state |= {f"{at}.{name}.weight": weight(*shape) for name, shape in shapes.items()}
        for norm in ("input", "post_attention"):
            state[f"{at}.{norm}_layernorm.weight"] = torch.ones(dim)
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
