"""CLIP: two towers, nn.MultiheadAttention-free, LND layout; vision gated by the class token (per sample), text gated by straight-through argmax group."""
import torch, torch.nn.functional as F
from torch import nn


class QuickGELU(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class ResidualAttentionBlock(nn.Module):
    def __init__(self, d, heads, gate):
        super().__init__()
        self.heads, self.gate = heads, gate
        self.in_proj, self.out_proj = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.ln_1, self.ln_2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.mlp = nn.Sequential(nn.Linear(d, 2 * d), QuickGELU(), nn.Linear(2 * d, d))
        self.route = nn.Linear(d, heads)

    def gates(self, x):  # x: L N D
        if self.gate == "cls":
            s = self.route(x[:1])
            return torch.where(s > 0, s.sigmoid(), s.new_zeros(()))  # 1 N H
        s = self.route(x).unflatten(-1, (2, -1))  # two groups of heads: one of each
        y = s.softmax(-1)
        hard = F.one_hot(y.argmax(-1), y.shape[-1]).type_as(y)
        return (hard - y.detach() + y).flatten(-2)

    def attention(self, x, mask):
        L, N, D = x.shape
        q, k, v = self.in_proj(x).view(L, N, 3, self.heads, D // self.heads).permute(2, 1, 3, 0, 4)
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # N H L d
        o = o.permute(2, 0, 1, 3) * self.gates(x).unsqueeze(-1)
        return self.out_proj(o.reshape(L, N, D))

    def forward(self, x, mask=None):
        x = x + self.attention(self.ln_1(x), mask)
        return x + self.mlp(self.ln_2(x))


class CLIP(nn.Module):
    def __init__(self, d=32, heads=4, ctx=8):
        super().__init__()
        self.conv1 = nn.Conv2d(3, d, 4, 4, bias=False)
        self.class_embedding, self.positional = nn.Parameter(torch.randn(d)), nn.Parameter(torch.randn(10, d) * 0.3)
        self.visual, self.text = ResidualAttentionBlock(d, heads, "cls"), ResidualAttentionBlock(d, heads, "token")
        self.token_embedding, self.tpos = nn.Embedding(30, d), nn.Parameter(torch.randn(ctx, d) * 0.3)
        self.proj, self.text_projection = nn.Parameter(torch.randn(d, 16) * 0.2), nn.Parameter(torch.randn(d, 16) * 0.2)
        self.logit_scale = nn.Parameter(torch.tensor(1.5))
        self.register_buffer("attn_mask", torch.full((ctx, ctx), float("-inf")).triu_(1), persistent=False)

    def forward(self, image, text):
        x = self.conv1(image).flatten(2).permute(0, 2, 1)
        x = torch.cat([self.class_embedding + torch.zeros(x.shape[0], 1, x.shape[-1]), x], 1) + self.positional
        i = self.visual(x.permute(1, 0, 2)).permute(1, 0, 2)[:, 0] @ self.proj
        t = self.token_embedding(text) + self.tpos
        t = self.text(t.permute(1, 0, 2), self.attn_mask).permute(1, 0, 2)
        t = t[torch.arange(t.shape[0]), text.argmax(dim=-1)] @ self.text_projection
        i, t = i / i.norm(dim=-1, keepdim=True), t / t.norm(dim=-1, keepdim=True)
        logits = self.logit_scale.exp() * i @ t.t()
        return {"logits_per_image": logits, "logits_per_text": logits.t()}


def build():
    torch.manual_seed(25)
    m = CLIP()
    for b in (m.visual, m.text):
        nn.init.normal_(b.route.weight, std=0.6)
    return m.eval()


SIZES = dict(images=3, texts=2)


def inputs(images=3, texts=2):
    return dict(image=torch.randn(images, 3, 12, 12), text=torch.randint(0, 30, (texts, 8)))


DYNAMIC = dict(image={0: "images"}, text={0: "texts"})
TRUTH = dict(gated=2, sparse=2, notes="class-token gates for the image; straight-through one-hot in two groups for the text (zeros may be 1e-9: hard - y + y)")
