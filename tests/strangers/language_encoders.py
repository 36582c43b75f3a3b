"""Encoders and encoder-decoders: BERT, ModernBERT, DeBERTa, T5, and one that retrieves."""

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._pytree import register_pytree_node

from moh_deploy.frontend.load.model import ModelInput
from tests.strangers.language_llamas import VOCAB, RMSNorm, ids
from tests.strangers.language_other_decoders import masked_tokens
from tests.zoo.model import Expected, ExpectedLayer, ZooModel, noise, seeded, tokens_in

PADDED = {0: "batch", 1: "seq"}


class BertSelfAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.num_attention_heads, self.attention_head_size = 4, 8
        self.query, self.key, self.value = (nn.Linear(32, 32) for _ in range(3))
        self.head_gate = nn.Linear(32, 4)
        self.threshold = 0.5

    def transpose_for_scores(self, x):
        x = x.view(x.size()[:-1] + (self.num_attention_heads, self.attention_head_size))
        return x.permute(0, 2, 1, 3)

    def forward(self, hidden_states, attention_mask=None, head_mask=None, output_attentions=False):
        q = self.transpose_for_scores(self.query(hidden_states))
        k = self.transpose_for_scores(self.key(hidden_states))
        v = self.transpose_for_scores(self.value(hidden_states))
        scores = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(self.attention_head_size)
        if attention_mask is not None:
            scores = scores + attention_mask
        probs = nn.functional.softmax(scores, dim=-1)
        context = torch.matmul(probs, v).permute(0, 2, 1, 3).contiguous()
        context = context.view(context.size()[:-2] + (-1,))
        p = torch.sigmoid(self.head_gate(hidden_states))
        hard = (p > self.threshold).to(p.dtype)
        gate = (hard - p).detach() * p + p * p  # Straight through: the value is hard * p.
        context = context.unflatten(-1, (4, 8)) * gate[..., None]
        return (context.flatten(-2), probs) if output_attentions else (context.flatten(-2),)


class BertLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.self = BertSelfAttention()
        self.dense, self.intermediate = nn.Linear(32, 32), nn.Linear(32, 64)
        self.output = nn.Linear(64, 32)
        self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(2))

    def forward(self, x, mask, output_attentions):
        out = self.self(x, mask, output_attentions=output_attentions)
        x = self.norms[0](x + self.dense(out[0]))
        x = self.norms[1](x + self.output(F.gelu(self.intermediate(x))))
        return (x, *out[1:])


class BaseModelOutput(OrderedDict):
    """A dict whose keys are attributes, None left out, as that of Hugging Face."""

    def __init__(self, **values):
        super().__init__({k: v for k, v in values.items() if v is not None})

    def __getattr__(self, name):
        if name in self:
            return self[name]
        raise AttributeError(name)


register_pytree_node(
    BaseModelOutput,
    lambda output: (list(output.values()), list(output)),
    lambda values, names: BaseModelOutput(**dict(zip(names, values, strict=True))),
    serialized_type_name="tests.strangers.language_encoders.BaseModelOutput",
)


class Bert(nn.Module):
    def __init__(self):
        super().__init__()
        self.word_embeddings = nn.Embedding(VOCAB, 32, padding_idx=0)
        self.position_embeddings = nn.Embedding(64, 32)
        self.token_type_embeddings = nn.Embedding(2, 32)
        self.register_buffer("position_ids", torch.arange(64).expand((1, -1)), persistent=False)
        self.norm = nn.LayerNorm(32)
        self.layer = nn.ModuleList(BertLayer() for _ in range(2))
        self.pooler = nn.Linear(32, 32)

    def forward(self, input_ids=None, attention_mask=None, token_type_ids=None):
        x = self.word_embeddings(input_ids) + self.token_type_embeddings(token_type_ids)
        x = self.norm(x + self.position_embeddings(self.position_ids[:, : x.shape[1]]))
        mask = (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * torch.finfo(x.dtype).min
        attentions = ()
        for layer in self.layer:
            x, probs = layer(x, mask, output_attentions=True)
            attentions += (probs,)
        pooled = torch.tanh(self.pooler(x[:, 0]))
        return BaseModelOutput(
            last_hidden_state=x, pooler_output=pooled, hidden_states=None, attentions=attentions[-1]
        )


def bert_inputs(batch: int = 2, seq: int = 7) -> tuple[ModelInput, ...]:
    mask = torch.ones(batch, seq, dtype=torch.int64)
    mask[0, -2:] = 0
    types = (torch.arange(seq) >= seq // 2).long().expand(batch, -1).clone()
    return (
        ModelInput("input_ids", ids(batch, seq), PADDED),
        ModelInput("attention_mask", mask, PADDED),
        ModelInput("token_type_ids", types, PADDED),
    )


class ModernBert(nn.Module):
    """Documents packed into one row; the odd layers see three tokens to each side."""

    def __init__(self):
        super().__init__()
        self.Wqkv = nn.ModuleList(nn.Linear(32, 96, bias=False) for _ in range(2))
        self.Wo = nn.ModuleList(nn.Linear(32, 32, bias=False) for _ in range(2))
        self.gate = nn.ModuleList(nn.Linear(32, 4, bias=False) for _ in range(2))
        self.norm = nn.ModuleList(nn.LayerNorm(32, bias=False) for _ in range(2))

    def forward(self, x, document):
        bs, seq_len, dim = x.shape
        same = document[:, None, :, None] == document[:, None, None, :]
        rows = torch.arange(seq_len).unsqueeze(0)
        near = (rows - rows.T).abs() <= 3
        for i, norm in enumerate(self.norm):
            h = norm(x)
            qkv = self.Wqkv[i](h).view(bs, seq_len, 3, 4, 8)
            q, k, v = qkv.transpose(3, 1).unbind(dim=2)
            mask = same & near if i % 2 else same
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
            logits = self.gate[i](h)
            chosen = torch.zeros_like(logits).scatter_(-1, logits.topk(2).indices, 1).bool()
            gates = logits.masked_fill(~chosen, float("-inf")).softmax(-1)
            out = out * gates.view(bs, seq_len, 4, 1)
            x = x + self.Wo[i](out.reshape(bs, seq_len, dim))
        return x


def packed_inputs(batch: int = 2, seq: int = 8) -> tuple[ModelInput, ...]:
    document = torch.stack([(torch.arange(seq) * (2 + b % 2) // seq) for b in range(batch)])
    return (*tokens_in(batch, seq), ModelInput("document", document, PADDED))


class Deberta(nn.Module):
    """Disentangled attention: content to position and position to content, gathered."""

    def __init__(self, span=4):
        super().__init__()
        self.span = span
        self.q, self.k, self.v, self.dense = (nn.Linear(32, 32) for _ in range(4))
        self.rel_embeddings = nn.Embedding(2 * span, 32)
        self.router = nn.Linear(32, 4)
        self.norm = nn.LayerNorm(32)

    def heads(self, t):
        return t.view(*t.shape[:2], 4, 8).permute(0, 2, 1, 3)

    def forward(self, hidden, attention_mask):
        b, s, _ = hidden.shape
        q, k, v = self.heads(self.q(hidden)), self.heads(self.k(hidden)), self.heads(self.v(hidden))
        scale = 1 / math.sqrt(8 * 3)
        rel = torch.arange(s)[:, None] - torch.arange(s)[None, :]
        rel = torch.clamp(rel + self.span, 0, 2 * self.span - 1)
        emb = self.rel_embeddings.weight[None]
        pos_k, pos_q = self.heads(self.k(emb)), self.heads(self.q(emb))
        index = rel.expand(b, 4, s, s)
        c2p = torch.gather(q @ pos_k.transpose(-1, -2), -1, index)
        p2c = torch.gather(k @ pos_q.transpose(-1, -2), -1, index.mT).transpose(-1, -2)
        scores = (q @ k.transpose(-1, -2) + c2p + p2c) * scale
        mask = (attention_mask[:, None, None, :] * attention_mask[:, None, :, None]).bool()
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        probs = torch.softmax(scores, -1).masked_fill(~mask, 0.0)
        gates = F.relu(self.router(hidden))  # Heads whose logit is negative sleep.
        out = probs @ v * gates.transpose(1, 2)[..., None]
        return self.norm(hidden + self.dense(out.permute(0, 2, 1, 3).reshape(b, s, -1)))


class T5Attention(nn.Module):
    def __init__(self, causal, biased):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(32, 32, bias=False) for _ in range(4))
        self.wg = nn.Linear(32, 4, bias=False)
        self.causal = causal
        if biased:
            self.relative_attention_bias = nn.Embedding(8, 4)

    def compute_bias(self, q_len, k_len):
        rel = torch.arange(k_len)[None, :] - torch.arange(q_len)[:, None]
        distance = rel.abs() if not self.causal else -torch.min(rel, torch.zeros_like(rel))
        small = distance < 2
        large = 2 + (torch.log(distance.float().clamp(min=1) / 2) / math.log(8) * 2).long()
        bucket = torch.where(small, distance, large.clamp(max=3))
        bucket = bucket + (rel > 0) * 4 if not self.causal else bucket
        return self.relative_attention_bias(bucket).permute(2, 0, 1).unsqueeze(0)

    def forward(self, x, key_value_states=None, mask=None):
        b = x.shape[0]
        memory = x if key_value_states is None else key_value_states
        q = self.q(x).view(b, -1, 4, 8).transpose(1, 2)
        k = self.k(memory).view(b, -1, 4, 8).transpose(1, 2)
        v = self.v(memory).view(b, -1, 4, 8).transpose(1, 2)
        scores = torch.matmul(q, k.transpose(3, 2))
        if hasattr(self, "relative_attention_bias"):
            scores += self.compute_bias(q.shape[2], k.shape[2])
        if self.causal:
            causal = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).triu(1)
            scores[causal.expand_as(scores)] = float("-inf")
        if mask is not None:
            scores += mask
        weights = F.softmax(scores.float(), dim=-1).type_as(scores)
        out = torch.matmul(weights, v).transpose(1, 2)
        g, i = self.wg(x).softmax(-1).topk(3, -1)
        g = torch.zeros(*x.shape[:2], 4).scatter(-1, i, g / g.sum(-1, keepdim=True))
        return self.o((out * g[..., None]).contiguous().view(b, -1, 32))


class T5(nn.Module):
    def __init__(self):
        super().__init__()
        self.shared = nn.Embedding(VOCAB, 32)
        self.encoder = T5Attention(causal=False, biased=True)
        self.decoder = T5Attention(causal=True, biased=True)
        self.cross = T5Attention(causal=False, biased=False)
        self.norm = nn.ModuleList(RMSNorm(32) for _ in range(4))

    def forward(self, input_ids, attention_mask, decoder_input_ids):
        mask = (1.0 - attention_mask[:, None, None, :].float()) * -1e9
        memory = self.shared(input_ids)
        memory = self.norm[0](memory + self.encoder(memory, mask=mask))
        y = self.shared(decoder_input_ids)
        y = y + self.decoder(self.norm[1](y))
        y = y + self.cross(self.norm[2](y), key_value_states=memory, mask=mask)
        return F.linear(self.norm[3](y) * 32**-0.5, self.shared.weight), memory


def t5_inputs(batch: int = 2, seq: int = 7, target: int = 4) -> tuple[ModelInput, ...]:
    mask = torch.ones(batch, seq, dtype=torch.int64)
    mask[0, -2:] = 0
    return (
        ModelInput("input_ids", ids(batch, seq), PADDED),
        ModelInput("attention_mask", mask, PADDED),
        ModelInput("decoder_input_ids", ids(batch, target, seed=9), {0: "batch", 1: "target"}),
    )


class PrefixRetriever(nn.Module):
    """A prefix is seen from everywhere; then neighbours are read, one head after another."""

    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(32, 96), nn.Linear(32, 32)
        self.q, self.kv = nn.Linear(32, 32), nn.Linear(32, 64)
        self.out = nn.Parameter(torch.randn(4, 8, 32))
        self.gates = nn.ModuleList(nn.Linear(32, 4) for _ in range(2))

    def sparse(self, logits):
        top, index = logits.topk(2, dim=-1)
        return torch.zeros_like(logits).scatter(-1, index, torch.softmax(top, dim=-1))

    def forward(self, x, prefix_len, neighbours):
        b, s, _ = x.shape
        q, k, v = self.qkv(x).view(b, s, 3, 4, 8).permute(2, 0, 3, 1, 4)
        pos = torch.arange(s)
        see = (pos[None, :] <= pos[:, None])[None] | (pos < prefix_len[:, None])[:, None, :]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=see.unsqueeze(1))
        y = y * self.sparse(self.gates[0](x)).mT.unsqueeze(-1)
        x = x + self.proj(y.transpose(1, 2).flatten(2))
        memory = neighbours.flatten(1, 2)  # [B, N * T, C]
        q = self.q(x).chunk(4, dim=-1)
        k, v = (t.chunk(4, dim=-1) for t in self.kv(memory).chunk(2, dim=-1))
        gates = self.sparse(self.gates[1](x))
        total = torch.zeros_like(x)
        for h in range(4):
            a = (q[h] @ k[h].transpose(1, 2) * 8**-0.5).softmax(-1)
            total = total + gates[..., h : h + 1] * ((a @ v[h]) @ self.out[h])
        return x + total


def retrieval_inputs(batch: int = 2, seq: int = 7, chunk: int = 5) -> tuple[ModelInput, ...]:
    prefix = torch.arange(batch) % 3 + 2
    near = noise(batch, 2, chunk, 32, seed=4)
    return (
        *tokens_in(batch, seq),
        ModelInput("prefix_len", prefix, {0: "batch"}),
        ModelInput("neighbours", near, {0: "batch", 2: "chunk"}),
    )


def _one(k, router="custom"):
    return ExpectedLayer(4, 4, k, 0, router)


MODELS: list[ZooModel] = [
    ZooModel(
        "bert_model_output",
        seeded(Bert),
        bert_inputs,
        Expected((_one(None),) * 2),
        "threshold with a straight-through estimate; attention weights returned; ModelOutput",
    ),
    ZooModel(
        "modernbert_packed",
        seeded(ModernBert),
        packed_inputs,
        Expected((_one(2, "top_k"),) * 2),
        "fused Wqkv with heads behind; document ids as mask; local and global in turns",
    ),
    ZooModel(
        "deberta_disentangled",
        seeded(Deberta),
        masked_tokens,
        Expected((_one(None),)),
        "biases that depend on query and key, as a mask that differs per head; relu gates",
    ),
    ZooModel(
        "t5_encoder_decoder",
        seeded(T5),
        t5_inputs,
        Expected((_one(3, "ranked"),) * 3),
        "relative buckets, no scale, `scores[mask] = -inf`; cross-attention by keyword",
    ),
    ZooModel(
        "prefix_retrieval",
        seeded(PrefixRetriever),
        retrieval_inputs,
        Expected((_one(2, "top_k"), _one(2, "top_k"))),
        "prefix lengths as input; second attention is a loop over heads, each projected",
    ),
]
