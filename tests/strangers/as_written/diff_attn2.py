"""diffusers: Attention + AttnProcessor2_0, on an image, self and cross, hard threshold on sigmoid."""
import torch, torch.nn.functional as F
from torch import nn


class HeadRoutedAttnProcessor2_0:
    def __init__(self, threshold=0.5):
        self.threshold = threshold

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        residual = hidden_states
        input_ndim = hidden_states.ndim
        if input_ndim == 4:
            batch_size, channel, height, width = hidden_states.shape
            hidden_states = hidden_states.view(batch_size, channel, height * width).transpose(1, 2)
        batch_size = hidden_states.shape[0]
        if attention_mask is not None:
            attention_mask = attn.prepare_attention_mask(attention_mask)
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        query = attn.to_q(hidden_states)
        if encoder_hidden_states is None:
            encoder_hidden_states = hidden_states
        key = attn.to_k(encoder_hidden_states)
        value = attn.to_v(encoder_hidden_states)
        inner_dim = key.shape[-1]
        head_dim = inner_dim // attn.heads
        query = query.view(batch_size, -1, attn.heads, head_dim).transpose(1, 2)
        key = key.view(batch_size, -1, attn.heads, head_dim).transpose(1, 2)
        value = value.view(batch_size, -1, attn.heads, head_dim).transpose(1, 2)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, dropout_p=0.0, is_causal=False)
        prob = attn.head_router(hidden_states).sigmoid()
        weight = torch.where(prob > self.threshold, prob, torch.zeros_like(prob))
        out = out.transpose(1, 2) * weight.unsqueeze(-1)
        out = out.reshape(batch_size, -1, attn.heads * head_dim).to(query.dtype)
        out = attn.to_out[0](out)
        out = attn.to_out[1](out)
        if input_ndim == 4:
            out = out.transpose(-1, -2).reshape(batch_size, channel, height, width)
        if attn.residual_connection:
            out = out + residual
        return out / attn.rescale_output_factor


class Attention(nn.Module):
    def __init__(self, query_dim, cross_attention_dim=None, heads=4, dim_head=8, norm_num_groups=None, processor=None):
        super().__init__()
        self.heads, inner = heads, heads * dim_head
        self.group_norm = nn.GroupNorm(norm_num_groups, query_dim) if norm_num_groups else None
        self.to_q = nn.Linear(query_dim, inner, bias=False)
        self.to_k = nn.Linear(cross_attention_dim or query_dim, inner, bias=False)
        self.to_v = nn.Linear(cross_attention_dim or query_dim, inner, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(inner, query_dim), nn.Dropout(0.1)])
        self.head_router = nn.Linear(query_dim, heads)
        self.residual_connection, self.rescale_output_factor = True, 1.0
        self.set_processor(processor or HeadRoutedAttnProcessor2_0())

    def set_processor(self, processor):
        self.processor = processor

    def prepare_attention_mask(self, mask):
        if mask.ndim == 2:
            mask = (1 - mask) * -10000.0
            mask = mask.unsqueeze(1)
        mask = mask.repeat_interleave(self.heads, dim=0)
        return mask.view(-1, self.heads, mask.shape[1], mask.shape[-1])

    def forward(self, hidden_states, encoder_hidden_states=None, attention_mask=None, **kw):
        return self.processor(self, hidden_states, encoder_hidden_states, attention_mask, **kw)


class CrossAttnBlock2D(nn.Module):
    def __init__(self, ch=32):
        super().__init__()
        self.conv = nn.Conv2d(3, ch, 3, padding=1)
        self.attn1 = Attention(ch, norm_num_groups=4)
        self.attn2 = Attention(ch, cross_attention_dim=24, norm_num_groups=4)
        self.conv_out = nn.Conv2d(ch, 3, 3, padding=1)

    def forward(self, sample, encoder_hidden_states, encoder_attention_mask):
        h = F.silu(self.conv(sample))
        h = self.attn1(h)
        h = self.attn2(h, encoder_hidden_states, encoder_attention_mask)
        return self.conv_out(h)


def build():
    torch.manual_seed(1)
    m = CrossAttnBlock2D()
    for a in (m.attn1, m.attn2):
        nn.init.normal_(a.head_router.weight, std=0.7)
    return m.eval()


SIZES = dict(batch=2, side=4, text=7)


def inputs(batch=2, side=4, text=7):
    mask = (torch.arange(text)[None] < torch.randint(2, text + 1, (batch, 1))).float()
    return dict(sample=torch.randn(batch, 3, side, side), encoder_hidden_states=torch.randn(batch, text, 24), encoder_attention_mask=mask)


DYNAMIC = dict(sample={0: "batch", 2: "side", 3: "side"}, encoder_hidden_states={0: "batch", 1: "text"}, encoder_attention_mask={0: "batch", 1: "text"})
TRUTH = dict(gated=2, sparse=2, notes="threshold gate, self and cross, mask repeated for heads by repeat_interleave")
