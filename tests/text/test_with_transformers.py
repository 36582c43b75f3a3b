"""Directories whose code needs transformers: that of before, and today's with gated heads."""

import json
import textwrap
from pathlib import Path

import pytest
import torch

import moh_deploy
from moh_deploy.config.export_config import ModelSection
from moh_deploy.frontend.load.load_directory import load_directory
from tests.nightly import nightly
from tests.text.export_small import export_directory
from tests.text.model_directories import write_old_llama, write_weights

PROMPTS = [[5], [9, 4, 7, 31, 8, 60, 2], [(7 * i) % 90 + 1 for i in range(40)]]
STEPS = 64
GATED = """
    import torch
    from torch import nn
    from transformers.models.NAME import modeling_NAME as base


    class Gated(nn.Linear):
        def __init__(self, like, attention):
            super().__init__(like.in_features, like.out_features, bias=False)
            self.attention = [attention]

        def forward(self, x):
            gates = self.attention[0].gates
            x = x.unflatten(-1, (gates.shape[-1], -1)) * gates.unsqueeze(-1)
            return super().forward(x.flatten(-2))


    class Attention(base.CLASSAttention):
        def __init__(self, config, layer_idx):
            super().__init__(config, layer_idx)
            self.router = nn.Linear(config.hidden_size, config.num_attention_heads, bias=False)
            self.o_proj = Gated(self.o_proj, self)

        def forward(self, hidden_states, *args, **kwargs):
            scores = self.router(hidden_states).softmax(-1)
            best, index = scores.topk(scores.shape[-1] // 2, dim=-1)
            best = best / best.sum(-1, keepdim=True)
            self.gates = torch.zeros_like(scores).scatter(-1, index, best)
            return super().forward(hidden_states, *args, **kwargs)


    class MoHForCausalLM(base.CLASSForCausalLM):
        def __init__(self, config):
            super().__init__(config)
            for index, layer in enumerate(self.model.layers):
                layer.self_attn = Attention(config, index)
"""
CONFIG = {
    "architectures": ["MoHForCausalLM"],
    "auto_map": {"AutoModelForCausalLM": "modeling_moh.MoHForCausalLM"},
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "hidden_act": "silu",
}
FAMILIES = {"llama": "Llama", "qwen3": "Qwen3", "mistral": "Mistral"}


@pytest.fixture(autouse=True)
def needs_transformers():
    pytest.importorskip("transformers", reason="transformers is not installed")


def write_gated(root: Path, family: str) -> None:
    """Write a directory of an architecture of transformers, its attention gated by local code."""
    import transformers

    name = FAMILIES[family]
    root.mkdir()
    code = textwrap.dedent(GATED).replace("NAME", family).replace("CLASS", name)
    (root / "modeling_moh.py").write_text(code)
    # Of Mistral with a window that the longest prompt leaves.
    window = {"sliding_window": 16} if family == "mistral" else {}
    config = {**CONFIG, **window, "model_type": family, "tie_word_embeddings": family != "mistral"}
    (root / "config.json").write_text(json.dumps(config))
    built = getattr(transformers, f"{name}ForCausalLM")(
        getattr(transformers, f"{name}Config")(**config)
    )
    generator = torch.Generator().manual_seed(1)
    state = {
        key: torch.randn(item.shape, generator=generator) / item.shape[-1] ** 0.5
        if item.ndim > 1
        else item
        for key, item in built.state_dict().items()
        if key != "lm_head.weight" or family == "mistral"
    }
    for layer in range(2):
        key = f"model.layers.{layer}.self_attn.router.weight"
        state[key] = torch.randn(4, 32, generator=generator)
    write_weights(root, state)


def alone(root: Path, prompt: list[int], count: int) -> list[int]:
    """Return the likeliest tokens of the directory's own model: no cache, mask, task or batch."""
    module = load_directory(root, ModelSection(), trust_code=True, trust_pickle=False).module
    module.eval()
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            found = module(input_ids=torch.tensor([ids]), use_cache=False)
            ids.append(int(found.logits[0, -1].argmax()))
    return ids[len(prompt) :]


# Where a trace is tried with no tokens at all.
@pytest.mark.filterwarnings(r"ignore:std\(\):UserWarning")
@nightly
@pytest.mark.parametrize("family", ["old_llama", *FAMILIES])
def test_tokens_of_a_padded_batch_are_those_of_the_model_alone(family: str, tmp_path: Path):
    root = tmp_path / "model"
    write_old_llama(root) if family == "old_llama" else write_gated(root, family)
    package = export_directory(root, tmp_path / "package", require_layers="all")
    window = ", window of 16" if family == "mistral" else ""
    masks = [layer.mask for layer in package.manifest.layers]
    assert masks == [f"causal{window}, padding"] * 2
    assert package.manifest.new_tokens == "seq"
    report = moh_deploy.generate(package.root, tokens=PROMPTS, max_tokens=STEPS)
    expected = [alone(root, prompt, STEPS) for prompt in PROMPTS]
    assert [list(text.tokens) for text in report.texts] == expected


@nightly
def test_transformers_itself_keeps_its_names(tmp_path: Path):
    import transformers
    from transformers import cache_utils

    before = (transformers.DynamicCache, cache_utils.DynamicCache)
    write_old_llama(tmp_path)
    load_directory(tmp_path, ModelSection(), trust_code=True, trust_pickle=False)
    assert (transformers.DynamicCache, cache_utils.DynamicCache) == before
    assert not hasattr(cache_utils.DynamicCache, "from_legacy_cache")
    with pytest.raises(ImportError):
        from transformers import modeling_attn_mask_utils  # noqa: F401
