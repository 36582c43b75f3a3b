"""Models of three MoH layers: the zoo's are mostly of one, which cannot show where a fault is."""

import torch
import torch.nn.functional as F
from torch import nn

from moh_deploy.frontend.load.model import ModelInput
from tests.zoo import language, published, windowed
from tests.zoo.model import Expected, ExpectedLayer, ZooModel, noise, seeded, tokens_in
from tests.zoo.sdpa import pick_heads

WIDTH, HEADS, DEPTH = 32, 4, 3


class Block(nn.Module):
    """Attention whose heads a router picks, then an MLP; each behind a LayerNorm of its own."""

    def __init__(self, picked: int = 2) -> None:
        super().__init__()
        self.picked = picked
        self.before, self.between = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.router = nn.Linear(WIDTH, HEADS, bias=False)
        self.table = nn.Parameter(torch.zeros(HEADS, 31))
        self.wide, self.narrow = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None, *, causal: bool) -> torch.Tensor:
        h = self.before(x)
        q, k, v = (m(h).unflatten(2, (HEADS, -1)).transpose(1, 2) for m in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        gates = pick_heads(self.router(h), self.picked)
        x = x + self.o((y.transpose(1, 2) * gates[..., None]).flatten(2))
        return x + self.narrow(F.gelu(self.wide(self.between(x))))


class Stack(nn.Module):
    """Three such layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(DEPTH))


class PaddedEncoder(Stack):
    """Keys that are padding are hidden by a boolean mask, in each layer."""

    def forward(self, x: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x, valid[:, None, None, :], causal=False)
        return x


class BiasedEncoder(Stack):
    """Each layer adds a bias of its own to the scores: a table of relative positions."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        at = torch.arange(x.shape[1])
        for layer in self.layers:
            bias = layer.table[:, (at[:, None] - at[None]).clamp(-15, 15) + 15]
            x = layer(x, bias[None], causal=False)
        return x


class CausalDecoder(Stack):
    """Causal layers without any mask tensor."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x, None, causal=True)
        return x


def near_ties() -> nn.Module:
    """Build a MoH-ViT whose routers hardly prefer one head to another: every margin is below
    0.01."""
    model = seeded(lambda: published.TinyVision(depth=DEPTH))()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(".route.weight"):
                weight.mul_(0.004)
    return model


class DeepDenoiser(published.Denoiser):
    """A diffusion transformer all of whose three layers choose."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            published.DenoiserBlock(48, num_heads=6, shared=2, routed=2) for _ in range(DEPTH)
        )


class WindowedStack(nn.Module):
    """Three layers of windowed and pooled keys in one softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(windowed.FocusAttention() for _ in range(DEPTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + layer(F.layer_norm(x, (WIDTH,)))
        return x


def tied_routers() -> nn.Module:
    """Build the decoder with the same weights of heads 1 and 2 in each router: whoever breaks the
    tie decides."""
    model = seeded(CausalDecoder)()
    with torch.no_grad():
        for layer in model.layers:
            layer.router.weight[2] = layer.router.weight[1]
    return model


def padded_in(batch: int = 2, seq: int = 7) -> tuple[ModelInput, ...]:
    """Return tokens, and which of them are valid: all but the last two of the first sequence."""
    valid = torch.ones(batch, seq, dtype=torch.bool)
    valid[0, -2:] = False
    tokens = noise(batch, seq, WIDTH)
    dims = {0: "batch", 1: "seq"}
    return ModelInput("x", tokens, dims), ModelInput("valid", valid, dims)


def three_caches_in(batch: int = 2, past: int = 5) -> tuple[ModelInput, ...]:
    """Return one token for each sequence, its mask, and the caches of three layers."""
    ids, mask, *_ = language.one_token_in(batch, past)
    return (ids, mask, *language.cache_in(batch, past, layers=DEPTH))


def _three(router: str, heads: int, kv_heads: int, top_k: int, shared: int) -> Expected:
    return Expected((ExpectedLayer(heads, kv_heads, top_k, shared, router),) * DEPTH)


_AGGREGATED = ExpectedLayer(4, 4, 1, 2, "two_stage")

STACKS = (
    ZooModel(
        "stack_windowed",
        seeded(WindowedStack),
        windowed.pixels_in,
        Expected((_AGGREGATED,) * DEPTH),
        "windowed and pooled keys",
    ),
    ZooModel(
        "stack_padded", seeded(PaddedEncoder), padded_in, _three("top_k", 4, 4, 2, 0), "bool mask"
    ),
    ZooModel(
        "stack_biased",
        seeded(BiasedEncoder),
        tokens_in,
        _three("top_k", 4, 4, 2, 0),
        "position bias",
    ),
    ZooModel(
        "stack_causal", seeded(CausalDecoder), tokens_in, _three("top_k", 4, 4, 2, 0), "is_causal"
    ),
    ZooModel(
        "stack_near_ties",
        near_ties,
        published.images_in,
        _three("two_stage", 6, 6, 2, 2),
        "every margin is below 0.01",
    ),
    ZooModel(
        "stack_tied", tied_routers, tokens_in, _three("top_k", 4, 4, 2, 0), "two heads always tie"
    ),
    ZooModel(
        "stack_dit",
        seeded(DeepDenoiser),
        published.noisy_latents_in,
        _three("two_stage", 6, 6, 2, 2),
        "three layers that choose",
    ),
    ZooModel(
        "stack_vit",
        seeded(lambda: published.TinyVision(depth=DEPTH)),
        published.images_in,
        _three("two_stage", 6, 6, 2, 2),
        "a MoH-ViT",
    ),
    ZooModel(
        "stack_llama",
        seeded(lambda: language.Prefill(fixed=4, pick=2, depth=DEPTH)),
        language.prompt_in,
        _three("query_norm", 8, 2, 2, 4),
        "0/1 gates, GQA, RoPE, added padding and causal mask",
    ),
    ZooModel(
        "stack_decode",
        seeded(lambda: language.DecodeStep(fixed=4, pick=2, depth=DEPTH)),
        three_caches_in,
        _three("query_norm", 8, 2, 2, 4),
        "one token behind a cache",
    ),
)
