"""The decoder of step_cpu.py in the forms that are compared, all of the same random weights.

| folder | what it is |
|---|---|
| `open-N` | a directory of the MoH decoder (`examples/text/modeling_moh_text.py`), N heads open |
| `open-N-package` | its package: `moh-deploy export --task text-generation --cache in-place` |
| `plain` | `torch.onnx.export` of it, every head open |
| `dense` | a Llama of the same weights without routers, as Hugging Face lays it out |
| `dense-genai` | that by onnxruntime-genai's own builder: GroupQueryAttention, one buffer |

In int8 and int4 there are `-int8` and `-int4` of the packages and of the builder's; `dense-dynamic`
is the builder's float32 form whose products ONNX Runtime's dynamic quantiser brought to int8.
"""

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx_ir as ir
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import moh_deploy
from moh_deploy.runtime.onnxruntime.quantizer import quantize_products

SHARED_HEADS = 4
_EXAMPLE = Path(__file__).parents[1] / "examples" / "text"
_CODE = "modeling_moh_text"


@dataclass(frozen=True)
class Sizes:
    """Sizes of the decoder; those of the defaults are what RESULTS.md has."""

    layers: int = 4
    hidden: int = 2048
    inner: int = 4096
    heads: int = 16
    kv_heads: int = 4
    vocab: int = 8192
    positions: int = 16384

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


@dataclass(frozen=True)
class StepModels:
    """Where the forms lie; each is made when it is asked for first, and kept."""

    root: Path
    sizes: Sizes
    weights: str = "float32"

    def module(self, open_heads: int | None = None) -> nn.Module:
        """Return the MoH decoder, all of whose heads are open unless a number says otherwise."""
        code = _modelling_code()
        torch.manual_seed(0)
        config = SimpleNamespace(**_config(self.sizes, open_heads or self.sizes.heads))
        model: nn.Module = code.MoHTextForCausalLM(config).eval()
        return model

    def package(self, open_heads: int) -> Path:
        """Export the MoH decoder, and lower its weights if they are to be of 4 bits."""
        target = self.root / f"open-{open_heads}-package"
        if not target.exists():
            directory = self.root / f"open-{open_heads}"
            directory.mkdir(parents=True, exist_ok=True)
            config = _config(self.sizes, open_heads)
            config["auto_map"] = {"AutoModelForCausalLM": f"{_CODE}.MoHTextForCausalLM"}
            (directory / "config.json").write_text(json.dumps(config))
            _write_tokenizer(directory)
            shutil.copyfile(_EXAMPLE / f"{_CODE}.py", directory / f"{_CODE}.py")
            save_file(self.module().state_dict(), directory / "model.safetensors")
            moh_deploy.export(
                directory, target, task="text-generation", cache="in-place", trust_code=True
            )
            (directory / "model.safetensors").unlink()
        if self.weights == "float32":
            return target
        lowered = self.root / f"open-{open_heads}{self._suffix}"
        if not lowered.exists():
            moh_deploy.precision(target, to=self.weights, output=lowered)
        return lowered

    def bundle(self, open_heads: int) -> Path:
        """Bundle that package for genai."""
        target = self.root / f"open-{open_heads}-genai{self._suffix}"
        if not target.exists():
            moh_deploy.bundle_for_genai(self.package(open_heads), target)
        return target

    def plain(self) -> Path:
        """Export the decoder as PyTorch does, with caches that grow."""
        target = self.root / "plain" / "model.onnx"
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            inputs, names = example(self.sizes)
            torch.onnx.export(
                Flat(self.module()).eval(),
                inputs,
                target,
                input_names=["input_ids", "attention_mask", *past_names(self.sizes)],
                output_names=["logits", *present_names(self.sizes)],
                dynamic_shapes=(names[0], names[1], tuple(names[2:])),
                dynamo=True,
                verbose=False,
            )
        return target

    def dense(self) -> Path:
        """Build the dense form by genai's own builder; returns a directory that genai opens."""
        target = self.root / f"dense-genai{self._suffix}"
        if not (target / "genai_config.json").exists():
            source = self.root / "dense"
            _write_llama(source, self.module(), self.sizes)
            builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(source)]
            builder += ["-o", str(target), "-e", "cpu", "-c", str(self.root / "cache")]
            if self.weights == "float32":
                builder += ["-p", "fp32"]
            else:
                builder += ["-p", self.weights, "--extra_options", "accuracy_level=4"]
            subprocess.run(builder, check=True, stdout=sys.__stderr__)
        return target

    def dynamic(self) -> Path:
        """Bring the products of the builder's float32 form to int8, as `precision` does those of a
        package; returns a directory with `model.onnx`."""
        target = self.root / "dense-dynamic"
        if not target.exists():
            model = ir.load(replace(self, weights="float32").dense() / "model.onnx")
            names = [
                node.name
                for node in model.graph
                if node.op_type == "MatMul" and node.inputs[1].const_value is not None
            ]
            lowered = quantize_products(model, names)
            target.mkdir()
            ir.save(lowered, target / "model.onnx", external_data="model.onnx.data")
        return target

    @property
    def _suffix(self) -> str:
        return "" if self.weights == "float32" else f"-{self.weights}"


class Flat(nn.Module):
    """The decoder with its caches as single tensors, in and out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, *past: Tensor) -> Any:
        positions = attention_mask.cumsum(-1)[:, -input_ids.shape[1] :] - 1
        pairs = tuple(zip(past[::2], past[1::2], strict=True))
        logits, present = self.model(input_ids, attention_mask, positions, pairs, True)
        return (logits, *(item for pair in present for item in pair))


def past_names(sizes: Sizes) -> list[str]:
    return [f"past_key_values.{n}.{kind}" for n in range(sizes.layers) for kind in ("key", "value")]


def present_names(sizes: Sizes) -> list[str]:
    return [name.replace("past_key_values", "present") for name in past_names(sizes)]


def example(sizes: Sizes) -> tuple[tuple[Tensor, ...], Sequence[dict[int, Any]]]:
    """Return small inputs of `Flat`, and the names of their dimensions."""
    # A tensor for each: an exporter takes one that is given twice for one input.
    pasts = [torch.zeros(2, sizes.kv_heads, 5, sizes.head_dim) for _ in past_names(sizes)]
    inputs = (torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 8, dtype=torch.int64), *pasts)
    # "total" is "past + seq"; the exporter finds that out.
    auto = torch.export.Dim.DYNAMIC
    return inputs, [{0: auto, 1: auto}, {0: auto, 1: auto}, *[{0: auto, 2: auto}] * len(pasts)]


def all_open(model: nn.Module) -> nn.Module:
    """Return the decoder without routers: every gate is 1."""
    for name, module in list(model.named_modules()):
        if name.endswith(".router"):
            model.set_submodule(name, _Ones(module.num_shared + module.num_routed))
    return model


class _Ones(nn.Module):
    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        return x.new_ones(*x.shape[:-1], self.heads)


def _config(sizes: Sizes, open_heads: int) -> dict[str, Any]:
    return {
        "model_type": "moh_text",
        "vocab_size": sizes.vocab,
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.inner,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "head_dim": sizes.head_dim,
        "shared_heads": SHARED_HEADS,
        "chosen_heads": open_heads - SHARED_HEADS,
        "max_position_embeddings": sizes.positions,
        "eos_token_id": 0,
    }


def _write_llama(target: Path, model: nn.Module, sizes: Sizes) -> None:
    """Write a Llama's directory of the decoder's weights."""
    target.mkdir(parents=True, exist_ok=True)
    layer = {
        "norm_1": "input_layernorm",
        "norm_2": "post_attention_layernorm",
        **{f"attention.{item}_proj": f"self_attn.{item}_proj" for item in "qkvo"},
        **{name: f"mlp.{name}_proj" for name in ("gate", "up", "down")},
    }
    names = {"embed": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
    names |= {
        f"blocks.{n}.{ours}": f"model.layers.{n}.{theirs}"
        for n in range(sizes.layers)
        for ours, theirs in layer.items()
    }
    state = model.state_dict()
    save_file(
        {f"{new}.weight": state[f"{old}.weight"] for old, new in names.items()},
        target / "model.safetensors",
        metadata={"format": "pt"},
    )
    config = _config(sizes, sizes.heads) | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "torch_dtype": "float32",
    }
    (target / "config.json").write_text(json.dumps(config))
    _write_tokenizer(target)


def _write_tokenizer(target: Path) -> None:
    """Write what genai asks for; no text is read here."""
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []},
    }
    (target / "tokenizer.json").write_text(json.dumps(tokenizer))
    (target / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')


def _modelling_code() -> Any:
    spec = importlib.util.spec_from_file_location(_CODE, _EXAMPLE / f"{_CODE}.py")
    assert spec is not None
    assert spec.loader is not None
    code = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(code)
    return code
