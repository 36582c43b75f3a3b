"""A decoder with routed heads, written for transformers 4.37: what it imports has moved since.

Heads are chosen by the lengths of their queries; the first half runs for every token. It takes
tuples or a `DynamicCache`, makes its mask by `_prepare_4d_causal_attention_mask`, has a table of
angles that grows, and outputs in classes of its own.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_attn_mask_utils import (
    AttentionMaskConverter,
    _prepare_4d_causal_attention_mask,
    _prepare_4d_causal_attention_mask_for_sdpa,
)
from transformers.modeling_utils import PreTrainedModel
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.utils import ModelOutput, is_flash_attn_2_available
from transformers.utils.import_utils import is_torch_fx_available

if is_flash_attn_2_available():
    from flash_attn import flash_attn_func  # noqa: F401

if is_torch_fx_available():
    _prepare_4d_causal_attention_mask = torch.fx.wrap(_prepare_4d_causal_attention_mask)


@dataclass
class DecoderOutput(ModelOutput):
    last_hidden_state: torch.FloatTensor = None
    past_key_values: tuple[tuple[torch.FloatTensor]] | None = None
    attentions: tuple[torch.FloatTensor] | None = None


@dataclass
class TokenOutput(ModelOutput):
    logits: torch.FloatTensor = None
    past_key_values: tuple[tuple[torch.FloatTensor]] | None = None


class RMSNorm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


class Rotary(nn.Module):
    """Angles of all positions up to a length, made anew where a longer text comes."""

    def __init__(self, dim, length, base):
        super().__init__()
        inverse = 1.0 / (base ** (torch.arange(0, dim, 2).float() / dim))
        self.register_buffer("inv_freq", inverse, persistent=False)
        self.fill(length)

    def fill(self, length):
        self.length = length
        angles = torch.outer(torch.arange(length, dtype=torch.float32), self.inv_freq)
        angles = torch.cat((angles, angles), dim=-1)
        self.register_buffer("cos_cached", angles.cos(), persistent=False)
        self.register_buffer("sin_cached", angles.sin(), persistent=False)

    def forward(self, x, seq_len):
        if seq_len > self.length:
            self.fill(seq_len)
        return self.cos_cached[:seq_len].to(x.dtype), self.sin_cached[:seq_len].to(x.dtype)


def turned(x):
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


class Attention(nn.Module):
    def __init__(self, config, layer_idx):
        super().__init__()
        self.layer_idx, self.heads = layer_idx, config.num_attention_heads
        self.kv_heads, width = config.num_key_value_heads, config.hidden_size
        self.size = width // self.heads
        assert (config.pretraining_tp, config.rope_scaling) == (1, None)
        self.rotary_emb = Rotary(self.size, config.max_position_embeddings, config.rope_theta)
        self.q_proj = nn.Linear(width, self.heads * self.size, bias=config.attention_bias)
        self.k_proj = nn.Linear(width, self.kv_heads * self.size, bias=config.attention_bias)
        self.v_proj = nn.Linear(width, self.kv_heads * self.size, bias=config.attention_bias)
        self.o_proj = nn.Linear(self.heads * self.size, width, bias=config.attention_bias)
        self.shared = self.heads // 2
        self.routed = self.heads // 4

    def forward(self, x, attention_mask, position_ids, past_key_value: Cache | None):
        batch, new, _ = x.size()
        queries = self.q_proj(x)
        routed = queries.view(-1, self.heads, self.size)[:, self.shared :]
        lengths = torch.stack(
            [torch.norm(routed[:, i], p=2, dim=1) for i in range(routed.shape[1])], dim=1
        )
        scores = F.softmax(lengths / lengths.std(dim=1, keepdim=True), dim=1)
        best = torch.topk(scores, k=self.routed, dim=1).indices
        chosen = F.one_hot(best, num_classes=scores.shape[1]).sum(dim=1).reshape(batch, new, -1)
        gates = torch.cat((torch.ones_like(chosen), chosen), dim=-1).to(x.dtype)

        q = queries.view(batch, new, self.heads, self.size).transpose(1, 2)
        k = self.k_proj(x).view(batch, new, self.kv_heads, self.size).transpose(1, 2)
        v = self.v_proj(x).view(batch, new, self.kv_heads, self.size).transpose(1, 2)
        total = k.shape[-2]
        if past_key_value is not None:
            total += past_key_value.get_usable_length(total, self.layer_idx)
        cos, sin = self.rotary_emb(v, seq_len=total)
        cos, sin = cos[position_ids].unsqueeze(1), sin[position_ids].unsqueeze(1)
        q, k = q * cos + turned(q) * sin, k * cos + turned(k) * sin
        if past_key_value is not None:
            k, v = past_key_value.update(k, v, self.layer_idx, {"sin": sin, "cos": cos})
        group = self.heads // self.kv_heads
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        weights = torch.matmul(q, k.transpose(2, 3)) / math.sqrt(self.size)
        if weights.size() != (batch, self.heads, new, total):
            raise ValueError("weights of another shape")
        weights = weights + attention_mask
        y = torch.matmul(weights.softmax(-1, dtype=torch.float32).to(q.dtype), v)
        y = torch.einsum("bne,bned->bned", gates, y.transpose(1, 2))
        return self.o_proj(y.reshape(batch, new, -1)), past_key_value


class Layer(nn.Module):
    def __init__(self, config, layer_idx):
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.self_attn = Attention(config, layer_idx)
        self.input_layernorm = RMSNorm(width, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(width, config.rms_norm_eps)
        self.up_proj, self.down_proj = nn.Linear(width, inner), nn.Linear(inner, width)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, x, *args):
        y, past = self.self_attn(self.input_layernorm(x), *args)
        x = x + y
        return x + self.down_proj(self.act_fn(self.up_proj(self.post_attention_layernorm(x)))), past


class LlamaPreTrainedModel(PreTrainedModel):
    config_class = LlamaConfig
    base_model_prefix = "model"
    _supports_sdpa = True
    _supports_cache_class = True

    def _init_weights(self, module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            module.weight.data.normal_(mean=0.0, std=self.config.initializer_range)


class LlamaModel(LlamaPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self._use_sdpa = config._attn_implementation == "sdpa"
        self.post_init()

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        use_cache=None,
        return_dict=None,
    ):
        return_dict = return_dict if return_dict is not None else self.config.use_return_dict
        batch, new = input_ids.shape[:2]
        before, use_legacy_cache = 0, False
        if use_cache:
            use_legacy_cache = not isinstance(past_key_values, Cache)
            if use_legacy_cache:
                past_key_values = DynamicCache.from_legacy_cache(past_key_values)
            before = past_key_values.get_usable_length(new)
        if position_ids is None:
            position_ids = torch.arange(before, new + before).unsqueeze(0)
        x = self.embed_tokens(input_ids)
        make = _prepare_4d_causal_attention_mask
        if self._use_sdpa:
            make = _prepare_4d_causal_attention_mask_for_sdpa
        mask = make(attention_mask, (batch, new), x, before)
        cache = None
        for layer in self.layers:
            x, cache = layer(x, mask, position_ids, past_key_values if use_cache else None)
        next_cache = None
        if use_cache:
            next_cache = cache.to_legacy_cache() if use_legacy_cache else cache
        x = self.norm(x)
        if not return_dict:
            return tuple(item for item in (x, next_cache) if item is not None)
        return DecoderOutput(last_hidden_state=x, past_key_values=next_cache)


class LlamaForCausalLM(LlamaPreTrainedModel):
    _tied_weights_keys = ["lm_head.weight"]  # noqa: RUF012

    def __init__(self, config):
        super().__init__(config)
        self.model = LlamaModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.model.embed_tokens

    def get_output_embeddings(self):
        return self.lm_head

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        use_cache=None,
        return_dict=None,
    ):
        return_dict = return_dict if return_dict is not None else self.config.use_return_dict
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            return_dict=return_dict,
        )
        logits = self.lm_head(outputs[0]).float()
        if not return_dict:
            return (logits,) + outputs[1:]
        return TokenOutput(logits=logits, past_key_values=outputs.past_key_values)


def expanded(mask, dtype):
    return AttentionMaskConverter._expand_mask(mask, dtype)
