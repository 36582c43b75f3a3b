"""BERT with a head_mask argument, on the attention probabilities, as transformers 4 did."""
import math, torch
from torch import nn


class BertSelfAttention(nn.Module):
    def __init__(self, hidden, heads):
        super().__init__()
        self.num_attention_heads, self.attention_head_size = heads, hidden // heads
        self.query, self.key, self.value = (nn.Linear(hidden, hidden) for _ in range(3))
        self.dropout = nn.Dropout(0.1)

    def transpose_for_scores(self, x):
        return x.view(x.size()[:-1] + (self.num_attention_heads, self.attention_head_size)).permute(0, 2, 1, 3)

    def forward(self, hidden_states, attention_mask=None, head_mask=None):
        key_layer = self.transpose_for_scores(self.key(hidden_states))
        value_layer = self.transpose_for_scores(self.value(hidden_states))
        query_layer = self.transpose_for_scores(self.query(hidden_states))
        attention_scores = torch.matmul(query_layer, key_layer.transpose(-1, -2)) / math.sqrt(self.attention_head_size)
        if attention_mask is not None:
            attention_scores = attention_scores + attention_mask
        attention_probs = self.dropout(nn.functional.softmax(attention_scores, dim=-1))
        if head_mask is not None:
            attention_probs = attention_probs * head_mask
        context = torch.matmul(attention_probs, value_layer).permute(0, 2, 1, 3).contiguous()
        return context.view(context.size()[:-2] + (self.num_attention_heads * self.attention_head_size,))


class BertLayer(nn.Module):
    def __init__(self, hidden, heads):
        super().__init__()
        self.self, self.dense, self.LayerNorm = BertSelfAttention(hidden, heads), nn.Linear(hidden, hidden), nn.LayerNorm(hidden, eps=1e-12)

    def forward(self, x, mask, head_mask):
        return self.LayerNorm(self.dense(self.self(x, mask, head_mask)) + x)


class Bert(nn.Module):
    def __init__(self, hidden=32, heads=4, layers=2):
        super().__init__()
        self.emb, self.pos = nn.Embedding(50, hidden), nn.Embedding(32, hidden)
        self.layer = nn.ModuleList([BertLayer(hidden, heads) for _ in range(layers)])

    def get_head_mask(self, head_mask):
        if head_mask.dim() == 1:
            head_mask = head_mask[None, None, :, None, None].expand(len(self.layer), -1, -1, -1, -1)
        elif head_mask.dim() == 2:
            head_mask = head_mask.unsqueeze(1).unsqueeze(-1).unsqueeze(-1)
        return head_mask

    def forward(self, input_ids, attention_mask, head_mask):
        x = self.emb(input_ids) + self.pos(torch.arange(input_ids.shape[1], device=input_ids.device))
        mask = (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * torch.finfo(x.dtype).min
        head_mask = self.get_head_mask(head_mask)
        for i, l in enumerate(self.layer):
            x = l(x, mask, head_mask[i])
        return x


def build():
    torch.manual_seed(12)
    return Bert().eval()


SIZES = dict(batch=2, seq=7)
VALID = "attention_mask"


def inputs(batch=2, seq=7):
    mask = (torch.arange(seq)[None] < torch.randint(2, seq + 1, (batch, 1))).long()
    return dict(input_ids=torch.randint(0, 50, (batch, seq)), attention_mask=mask, head_mask=(torch.rand(2, 4) > 0.5).float())


DYNAMIC = {k: {0: "batch", 1: "seq"} for k in ("input_ids", "attention_mask")}
TRUTH = dict(gated=2, sparse=2, notes="the caller's head_mask [layers, heads] on probabilities; no router: gates are an input")
