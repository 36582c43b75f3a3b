"""The models that pages speak of as the reader's own, small ones; it imports torch only."""

import torch
import torch.nn.functional as F
from small_moh import SmallMoH
from torch import nn


class Vision(nn.Module):
    """Classify images [B, 3, 224, 224]."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 16, kernel_size=32, stride=32)
        self.blocks = nn.ModuleList(nn.ModuleDict({"attn": SmallMoH(16)}) for _ in range(2))
        self.head = nn.Linear(16, 10)

    def forward(self, images):
        x = self.patches(images).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = x + block["attn"](x)
        return self.head(x.mean(1))


class MaskedMoH(SmallMoH):
    """Attention of valid tokens alone."""

    def forward(self, x, valid):
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=valid[:, None, None]).transpose(1, 2)
        return self.out((y * self.gates(x).unsqueeze(-1)).flatten(2))


class Text(nn.Module):
    """Give each token's logits [B, S, 1000]."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(1000, 16)
        self.blocks = nn.ModuleList(nn.ModuleDict({"attn": MaskedMoH(16)}) for _ in range(2))
        self.head = nn.Linear(16, 1000)

    def forward(self, input_ids, attention_mask):
        x = self.embed(input_ids)
        for block in self.blocks:
            x = x + block["attn"](x, attention_mask.bool())
        return self.head(x)


class Step(SmallMoH):
    """Attend from tokens [B, S] to them and to a cache of one layer; give [B, S, 32]."""

    def __init__(self):
        super().__init__(32)
        self.embed = nn.Embedding(1000, 32)

    def forward(self, input_ids, past, use_cache=False):
        x = self.embed(input_ids)
        q, *new = self.qkv(x).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        k, v = (torch.cat(pair, 2) for pair in zip(past[0], new, strict=True))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.out((y * self.gates(x).unsqueeze(-1)).flatten(2))


def vit_moh():
    """Return the model of images, with weights that make its routing vary."""
    return _drawn(Vision)


def text_moh():
    """Return the model of tokens likewise."""
    return _drawn(Text)


def step_moh():
    """Return the model of tokens and a cache likewise."""
    return _drawn(Step)


def _drawn(kind):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = kind().eval()
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return model
