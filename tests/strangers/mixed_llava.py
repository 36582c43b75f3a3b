"""A language model that reads patches before its prompt, and its step on nested caches."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from moh_deploy.frontend.load.model import ModelInput
from tests.zoo.model import Expected, ExpectedLayer, ZooModel, noise, seeded


@dataclass
class CausalOutput:
    """What the language model returns: the caches only where they are asked for."""

    logits: Tensor
    past_key_values: tuple[tuple[Tensor, Tensor], ...] | None = None


class GroupedAttention(nn.Module):
    def __init__(self, d: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.heads, self.kv, self.hd = heads, kv_heads, d // heads
        self.q_proj, self.o_proj = nn.Linear(d, d, bias=False), nn.Linear(d, d, bias=False)
        self.k_proj = nn.Linear(d, self.hd * kv_heads, bias=False)
        self.v_proj = nn.Linear(d, self.hd * kv_heads, bias=False)
        self.gate = nn.Linear(d, heads, bias=False)

    def forward(
        self, x: Tensor, mask: Tensor, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        b, s, _ = x.shape
        q = self.q_proj(x).view(b, s, self.heads, self.hd).transpose(1, 2)
        k = self.k_proj(x).view(b, s, self.kv, self.hd).transpose(1, 2)
        v = self.v_proj(x).view(b, s, self.kv, self.hd).transpose(1, 2)
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        logits = self.gate(x)
        top, index = logits.topk(2, dim=-1)
        weights = torch.full_like(logits, float("-inf")).scatter(-1, index, top).softmax(-1)
        out = (out.transpose(1, 2) * weights[..., None]).reshape(b, s, -1)
        return self.o_proj(out), (k, v)


class LlavaDecoder(nn.Module):
    """Projected patches before the prompt, or (with a cache) the next tokens alone."""

    def __init__(self, d: int = 32) -> None:
        super().__init__()
        self.embed_tokens, self.lm_head = nn.Embedding(50, d), nn.Linear(d, 50, bias=False)
        self.multi_modal_projector = nn.Sequential(nn.Linear(24, d), nn.GELU(), nn.Linear(d, d))
        self.layers = nn.ModuleList(GroupedAttention(d, 4, 2) for _ in range(2))
        self.norms = nn.ModuleList(nn.RMSNorm(d) for _ in range(2))

    def run(
        self,
        input_ids: Tensor,
        pixel_features: Tensor | None,
        past: tuple[tuple[Tensor, Tensor], ...] | None,
    ) -> CausalOutput:
        x = self.embed_tokens(input_ids)
        if pixel_features is not None:
            x = torch.cat([self.multi_modal_projector(pixel_features), x], dim=1)
        before = 0 if past is None else past[0][0].size(2)
        rows = torch.arange(x.size(1)).unsqueeze(1) + before
        mask = torch.arange(before + x.size(1)).unsqueeze(0) <= rows
        caches = []
        for i, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            y, cache = layer(norm(x), mask, None if past is None else past[i])
            x = x + y
            caches.append(cache)
        return CausalOutput(self.lm_head(x), tuple(caches))


class LlavaPrefill(LlavaDecoder):
    def forward(self, input_ids: Tensor, pixel_features: Tensor) -> Tensor:
        return self.run(input_ids, pixel_features, None).logits


class LlavaStep(LlavaDecoder):
    def forward(
        self,
        *,
        input_ids: Tensor,
        past_key_values: tuple[tuple[Tensor, Tensor], ...] | None = None,
        pixel_features: Tensor | None = None,
        use_cache: bool = True,
    ) -> tuple[Tensor, tuple[tuple[Tensor, Tensor], ...] | None]:
        out = self.run(input_ids, pixel_features, past_key_values)
        return out.logits, out.past_key_values if use_cache else None


def _prompt(batch: int = 2, seq: int = 5, patches: int = 6) -> tuple[ModelInput, ...]:
    ids = torch.randint(0, 50, (batch, seq), generator=torch.Generator().manual_seed(7))
    return (
        ModelInput("input_ids", ids, {0: "batch", 1: "seq"}),
        ModelInput("pixel_features", noise(batch, patches, 24), {0: "batch", 1: "patches"}),
    )


_GQA = ExpectedLayer(4, 2, 2, 0, "top_k")

MODELS: list[ZooModel] = [
    ZooModel(
        "mixed_llava",
        seeded(LlavaPrefill),
        _prompt,
        Expected((_GQA, _GQA)),
        "patches joined with the prompt; the .pt2 is the step: keywords, nested caches, None, bool",
    ),
]


def _step_program() -> ExportedProgram:
    """Keyword arguments only, caches in tuples of tuples, `past` may be 0, one None, one bool."""
    batch, seq, past = Dim("batch", min=1), Dim("seq", min=1), Dim("past", min=0)
    cache = tuple((noise(2, 2, 6, 8, seed=i), noise(2, 2, 6, 8, seed=i + 9)) for i in range(2))
    ids = _prompt()[0].value
    sizes = {0: batch, 2: past}
    return torch.export.export(
        seeded(LlavaStep)(),
        (),
        {"input_ids": ids, "past_key_values": cache, "pixel_features": None, "use_cache": True},
        dynamic_shapes={
            "input_ids": {0: batch, 1: seq},
            "past_key_values": ((sizes, sizes), (sizes, sizes)),
            "pixel_features": None,
            "use_cache": None,
        },
        prefer_deferred_runtime_asserts_over_guards=True,
    )


PROGRAMS: dict[str, Callable[[], ExportedProgram]] = {"mixed_llava": _step_program}
"""What the user saved with torch.export.save, by the model's name."""
