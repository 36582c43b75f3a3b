"""diffusers: AttnAddedKVProcessor (UnCLIP, IF): text keys before image keys, baddbmm-less eager, gates of the time embedding (per sample)."""
import torch, torch.nn.functional as F
from torch import nn


class AttnAddedKV(nn.Module):
    def __init__(self, ch=32, text=20, heads=4, temb_ch=16):
        super().__init__()
        self.heads, self.scale = heads, (ch // heads) ** -0.5
        self.group_norm = nn.GroupNorm(8, ch)
        self.to_q, self.to_k, self.to_v = (nn.Linear(ch, ch) for _ in range(3))
        self.add_k_proj, self.add_v_proj = nn.Linear(text, ch), nn.Linear(text, ch)
        self.to_out = nn.Sequential(nn.Linear(ch, ch), nn.Dropout(0.0))
        self.time_gate = nn.Sequential(nn.SiLU(), nn.Linear(temb_ch, heads))

    def head_to_batch_dim(self, t):
        b, s, c = t.shape
        t = t.reshape(b, s, self.heads, c // self.heads).permute(0, 2, 1, 3)
        return t.reshape(b * self.heads, s, c // self.heads)

    def batch_to_head_dim(self, t):
        bh, s, c = t.shape
        t = t.reshape(bh // self.heads, self.heads, s, c).permute(0, 2, 1, 3)
        return t.reshape(bh // self.heads, s, c * self.heads)

    def forward(self, hidden_states, encoder_hidden_states, temb):
        residual = hidden_states
        hidden_states = hidden_states.view(hidden_states.shape[0], hidden_states.shape[1], -1).transpose(1, 2)
        hidden_states = self.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        query = self.head_to_batch_dim(self.to_q(hidden_states))
        ek, ev = self.add_k_proj(encoder_hidden_states), self.add_v_proj(encoder_hidden_states)
        key = torch.cat([self.head_to_batch_dim(ek), self.head_to_batch_dim(self.to_k(hidden_states))], dim=1)
        value = torch.cat([self.head_to_batch_dim(ev), self.head_to_batch_dim(self.to_v(hidden_states))], dim=1)
        scores = torch.baddbmm(torch.empty(query.shape[0], query.shape[1], key.shape[1], dtype=query.dtype), query, key.transpose(-1, -2), beta=0, alpha=self.scale)
        probs = scores.softmax(dim=-1)
        hidden_states = torch.bmm(probs, value)
        gate = F.relu(self.time_gate(temb))  # [batch, heads], many are 0
        hidden_states = hidden_states * gate.reshape(-1, 1, 1)
        hidden_states = self.to_out(self.batch_to_head_dim(hidden_states))
        hidden_states = hidden_states.transpose(-1, -2).reshape(residual.shape)
        return hidden_states + residual


class UNetMid(nn.Module):
    def __init__(self):
        super().__init__()
        self.time = nn.Linear(8, 16)
        self.resnet = nn.Conv2d(4, 32, 3, padding=1)
        self.attentions = nn.ModuleList([AttnAddedKV()])
        self.out = nn.Conv2d(32, 4, 1)

    def forward(self, sample, timestep, encoder_hidden_states):
        f = torch.exp(-torch.arange(4) * 1.5)
        e = timestep[:, None].float() * f[None]
        temb = self.time(torch.cat([e.sin(), e.cos()], dim=-1))
        h = self.resnet(sample)
        for a in self.attentions:
            h = a(h, encoder_hidden_states, temb)
        return self.out(h)


def build():
    torch.manual_seed(4)
    return UNetMid().eval()


SIZES = dict(batch=2, side=4, text=6)


def inputs(batch=2, side=4, text=6):
    return dict(sample=torch.randn(batch, 4, side, side), timestep=torch.randint(0, 1000, (batch,)), encoder_hidden_states=torch.randn(batch, text, 20))


DYNAMIC = dict(sample={0: "batch", 2: "side", 3: "side"}, timestep={0: "batch"}, encoder_hidden_states={0: "batch", 1: "text"})
TRUTH = dict(gated=1, sparse=1, notes="per-sample relu gates by timestep, heads in the batch; a per-sample gate is a gate for every token")
