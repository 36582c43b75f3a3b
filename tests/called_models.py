"""Small MoH models that are called in the ways in which strangers call theirs: by keyword, with
dicts, dataclasses, caches of pairs and classes of their own. User code: it imports torch only."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tests.small_moh import SmallMoH

HEADS, SIZE = 4, 2
WIDTH = HEADS * SIZE


class Attention(SmallMoH):
    """Attends to a cache and to its own tokens, where the mask is not 0."""

    def forward(self, x: Tensor, past: tuple[Tensor, Tensor] | None, mask: Tensor | None):
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, SIZE)).permute(2, 0, 3, 1, 4)
        if past is not None:
            k, v = torch.cat([past[0], k], -2), torch.cat([past[1], v], -2)
        scores = q @ k.transpose(-1, -2) / SIZE**0.5
        if mask is not None:
            scores = scores.masked_fill(mask[:, None, None] == 0, -1e9)
        y = (scores.softmax(-1) @ v).transpose(1, 2)
        return self.out((y * self.gates(x).unsqueeze(-1)).flatten(2)), (k, v)


class Model(nn.Module):
    """A layer behind a table of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(16, WIDTH)
        self.layers = nn.ModuleList(Attention(WIDTH) for _ in range(1))

    def run(self, ids: Tensor, mask: Tensor | None = None, past=None):
        x, present = self.table(ids), []
        for index, layer in enumerate(self.layers):
            y, kept = layer(x, None if past is None else past[index], mask)
            x = x + y
            present.append(kept)
        return x, present


def seeded(model: nn.Module) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.5)
    return model.eval()


class Keywords(Model):
    """As Hugging Face calls models: by keyword, with switches, any order, and what it ignores."""

    def forward(
        self,
        ids: Tensor | None = None,
        mask: Tensor | None = None,
        past: list[tuple[Tensor, Tensor]] | None = None,
        *,
        scale: Tensor,
        use_cache: bool | None = None,
        layers: int = 2,
        mode: str = "logits",
        **ignored: object,
    ) -> object:
        if mode != "states":
            raise ValueError(f"mode {mode}")
        if isinstance(past, tuple) or (past is not None and isinstance(past[0], list)):
            raise TypeError("past is a list of tuples")
        states, present = self.run(ids, mask, past)
        return {"states": states * scale * layers, "past": present if use_cache else None}


@dataclass
class Batch:
    """What a data loader makes."""

    ids: Tensor
    mask: Tensor | None = None
    scaled: bool = False


@dataclass
class Answer:
    """What nobody registered anywhere."""

    states: Tensor
    loss: Tensor | None = None


class TakesABatch(Model):
    def forward(self, batch: Batch) -> Answer:
        states, _ = self.run(batch.ids, batch.mask)
        return Answer(states * 2 if batch.scaled else states)


class TakesADict(Model):
    def forward(self, batch):
        states, _ = self.run(batch["ids"], batch["extra"]["mask"])
        return {"states": states}


class State(NamedTuple):
    key: Tensor
    value: Tensor


class Cache:
    """A cache of a class of its own, with what it has seen; registered below, without keys."""

    def __init__(self, states: list[State], seen: int) -> None:
        self.states, self.seen = states, seen


pytree.register_pytree_node(
    Cache,
    lambda cache: (cache.states, (cache.seen,)),
    lambda states, context: Cache(list(states), *context),
)


class TakesACache(Model):
    def forward(self, ids: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        if cache.seen != 7:
            raise ValueError("the cache has lost what it knew")
        states, present = self.run(ids, None, cache.states)
        return states, Cache([State(*kept) for kept in present], cache.seen)


def ids(batch: int = 2, seq: int = 5) -> Tensor:
    return torch.arange(batch * seq).reshape(batch, seq) % 16


def mask(batch: int = 2, length: int = 5) -> Tensor:
    ones = torch.ones(batch, length, dtype=torch.int64)
    ones[0, 0] = 0
    return ones


def past(batch: int = 2, length: int = 3) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(length)
    shape = (batch, HEADS, length, SIZE)
    return [(torch.randn(shape, generator=generator), torch.randn(shape, generator=generator))]
