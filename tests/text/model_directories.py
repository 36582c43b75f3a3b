"""Write model directories as Hugging Face lays them out, with small models."""

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

_HERE = Path(__file__).parent

SMALL = {
    "architectures": ["SmallForCausalLM"],
    "auto_map": {
        "AutoConfig": "sizes.SmallConfig",
        "AutoModelForCausalLM": "modeling_small.SmallForCausalLM",
    },
    "model_type": "small",
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "routed_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "eos_token_id": 2,
    "bos_token_id": 1,
}


def plain_torch_model(**changes: object) -> torch.nn.Module:
    """Return the model whose code needs torch alone, with random weights."""
    from tests.text.plain_torch.modeling_small import SmallConfig, SmallForCausalLM

    torch.manual_seed(3)
    return SmallForCausalLM(SmallConfig(**{**SMALL, **changes})).eval()


def write_plain_torch(root: Path, *, shards: int = 1, **changes: object) -> torch.nn.Module:
    """Write a directory of that model, and return the model."""
    model = plain_torch_model(**changes)
    root.mkdir(parents=True, exist_ok=True)
    for file in (_HERE / "plain_torch").glob("*.py"):
        shutil.copyfile(file, root / file.name)
    write_config(root, {**SMALL, **changes})
    state = {name: item.clone() for name, item in model.state_dict().items()}
    if model.head.weight is model.embed.weight:
        del state["head.weight"]  # as Hugging Face leaves out what is tied
    write_weights(root, state, shards=shards)
    return model


OLD_LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "auto_map": {"AutoModelForCausalLM": "modeling_llama.LlamaForCausalLM"},
    "model_type": "llama",
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "torch_dtype": "float32",
    "transformers_version": "4.37.0",
}


def write_old_llama(root: Path) -> None:
    """Write a directory whose code is that of transformers 4.37, with random weights."""
    root.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(_HERE / "old_llama" / "modeling_llama.py", root / "modeling_llama.py")
    write_config(root, OLD_LLAMA)
    sizes = {"q": 32, "k": 8, "v": 8, "o": 32}
    shapes = {"model.embed_tokens.weight": (97, 32), "lm_head.weight": (97, 32)}
    for layer in range(2):
        at = f"model.layers.{layer}"
        shapes |= {f"{at}.self_attn.{item}_proj.weight": (n, 32) for item, n in sizes.items()}
        shapes |= {f"{at}.up_proj.weight": (48, 32), f"{at}.up_proj.bias": (48,)}
        shapes |= {f"{at}.down_proj.weight": (32, 48), f"{at}.down_proj.bias": (32,)}
        shapes |= {f"{at}.{norm}_layernorm.weight": (32,) for norm in ("input", "post_attention")}
    shapes["model.norm.weight"] = (32,)
    generator = torch.Generator().manual_seed(5)
    state = {
        name: torch.ones(shape)
        if "norm" in name
        else torch.randn(shape, generator=generator) / shape[-1] ** 0.5
        for name, shape in shapes.items()
    }
    write_weights(root, state, shards=2)


def write_config(root: Path, config: dict[str, object]) -> None:
    (root / "config.json").write_text(json.dumps(config, indent=1))


def write_weights(root: Path, state: dict[str, torch.Tensor], *, shards: int = 1) -> None:
    """Write weights in one file, or in shards with their index."""
    if shards == 1:
        save_file(state, root / "model.safetensors")
        return
    names = sorted(state)
    files = {
        name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors"
        for i, name in enumerate(names)
    }
    for file in set(files.values()):
        save_file({n: state[n] for n in names if files[n] == file}, root / file)
    index = {"metadata": {}, "weight_map": files}
    (root / "model.safetensors.index.json").write_text(json.dumps(index))


if __name__ == "__main__":
    write_plain_torch(Path(sys.argv[1]), shards=2)
