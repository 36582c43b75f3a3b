"""An input is taken for a mask of valid tokens only where attention shows that it is one."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from moh_deploy.frontend.load.model import LoadedModel, ModelInput
from moh_deploy.frontend.normalize import normalize
from moh_deploy.frontend.recognize import recognize
from moh_deploy.frontend.recognize.padding import padding_inputs
from moh_deploy.frontend.trace import trace
from tests.nightly import nightly, sampled

BATCH, SEQ, DIM, HEADS = 2, 5, 8, 2
LOWEST = torch.finfo(torch.float32).min

MakeMask = Callable[[torch.Tensor], torch.Tensor]


class Gated(nn.Module):
    """Attention with a gate for each head; masks of scores are made by a function of the input."""

    def __init__(self, *masks: MakeMask, written: bool = False) -> None:
        super().__init__()
        self.masks, self.written = masks, written
        self.router, self.qkv = nn.Linear(DIM, HEADS), nn.Linear(DIM, 3 * DIM)

    def forward(self, x: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        for make in self.masks:
            heads = self.qkv(x).view(*x.shape[:2], 3, HEADS, -1).permute(2, 0, 3, 1, 4)
            gates = self.router(x).relu().transpose(1, 2).unsqueeze(-1)
            mixed = self.attend(*heads, make(valid)) * gates
            x = x + mixed.transpose(1, 2).flatten(2)
        return x

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        if not self.written:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return ((q @ k.transpose(-1, -2)).masked_fill(mask, -torch.inf)).softmax(-1) @ v


def causal(valid: torch.Tensor) -> torch.Tensor:
    return torch.ones(valid.shape[1], valid.shape[1]).bool().tril()


def keys(valid: torch.Tensor) -> torch.Tensor:
    return valid[:, None, None, :] != 0


def causal_keys(valid: torch.Tensor) -> torch.Tensor:
    return keys(valid) & causal(valid)


def opened_rows(valid: torch.Tensor) -> torch.Tensor:
    seen = causal_keys(valid)
    return seen | ~seen.any(-1, keepdim=True)


def lowest(valid: torch.Tensor) -> torch.Tensor:
    return (1.0 - keys(valid).float()) * LOWEST


def infinite(valid: torch.Tensor) -> torch.Tensor:
    seen = causal_keys(valid)
    return torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)


def gathered(valid: torch.Tensor) -> torch.Tensor:
    """Look each key up, as masks that are made by a function of four indices do."""
    batch, places = torch.arange(valid.shape[0]), torch.arange(valid.shape[1])
    return valid.bool()[batch[:, None, None, None], places] & causal(valid)


def found(model: nn.Module, valid: torch.Tensor | None = None) -> dict[int, bool]:
    torch.manual_seed(0)
    dims = {0: "batch", 1: "seq"}
    valid = torch.ones(BATCH, SEQ) if valid is None else valid
    inputs = [
        ModelInput("x", torch.randn(BATCH, SEQ, DIM), dims),
        ModelInput("valid", valid, dims),
    ]
    program = normalize(trace(LoadedModel(model.eval(), None, "in_memory", None), inputs))
    layers = recognize(program)
    assert layers
    return padding_inputs(program, layers, [item.value for item in inputs])


@sampled(6)
@pytest.mark.parametrize(
    "make", [keys, causal_keys, opened_rows, lowest, infinite, gathered], ids=lambda f: f.__name__
)
def test_mask_is_found_however_keys_are_hidden(make: MakeMask):
    assert found(Gated(make)) == {1: False}


@nightly
def test_mask_is_found_in_scores_that_are_written_out():
    assert found(Gated(lambda valid: ~keys(valid), written=True)) == {1: False}


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64])
def test_mask_that_is_one_for_padding_is_told_from_one_for_valid_tokens(dtype: torch.dtype):
    padding = torch.zeros(BATCH, SEQ, dtype=dtype)
    assert found(Gated(lambda where: ~keys(where)), padding) == {1: True}


def shifted(valid: torch.Tensor) -> torch.Tensor:
    return keys(valid.roll(1, 1))


def neighbours_too(valid: torch.Tensor) -> torch.Tensor:
    return keys(valid * valid.roll(1, 1))


def slightly(valid: torch.Tensor) -> torch.Tensor:
    return (1.0 - keys(valid).float()) * -1.0


@sampled(5)
@pytest.mark.parametrize(
    "model",
    [
        Gated(shifted),
        Gated(neighbours_too),
        Gated(slightly),  # a bias, which hides nothing
        Gated(keys, causal),  # the second layer reads what the first does not
    ],
    ids=["shifted", "neighbours", "bias", "one layer of two"],
)
def test_input_that_means_something_else_is_not_taken(model: nn.Module):
    assert found(model) == {}


def test_input_that_holds_other_values_is_not_taken():
    assert found(Gated(keys), torch.full((BATCH, SEQ), 2.0)) == {}


class CrossAttention(Gated):
    """Reads tokens of a text, whose mask it is, and returns none of them."""

    def forward(self, x: torch.Tensor, text: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        q = self.qkv(x).view(*x.shape[:2], 3, HEADS, -1).permute(2, 0, 3, 1, 4)[0]
        _, k, v = self.qkv(text).view(*text.shape[:2], 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        gates = self.router(x).relu().transpose(1, 2).unsqueeze(-1)
        return (self.attend(q, k, v, keys(valid)) * gates).transpose(1, 2).flatten(2)


@nightly
def test_mask_of_tokens_that_are_only_read_is_not_taken():
    inputs = [
        ModelInput("x", torch.randn(BATCH, 3, DIM), {0: "batch"}),
        ModelInput("text", torch.randn(BATCH, SEQ, DIM), {0: "batch", 1: "seq"}),
        ModelInput("valid", torch.ones(BATCH, SEQ), {0: "batch", 1: "seq"}),
    ]
    model = CrossAttention().eval()
    program = normalize(trace(LoadedModel(model, None, "in_memory", None), inputs))
    layers = recognize(program)
    assert len(layers) == 1
    assert padding_inputs(program, layers, [item.value for item in inputs]) == {}


class TwoMasks(Gated):
    """Hides keys by either of two masks of one sequence."""

    def forward(self, x: torch.Tensor, valid: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        gates = self.router(x).relu().transpose(1, 2).unsqueeze(-1)
        scores = (q @ k.mT).masked_fill(~keys(valid), LOWEST).masked_fill(~keys(kept), LOWEST)
        return ((scores.softmax(-1) @ v) * gates).transpose(1, 2).flatten(2)


@nightly
def test_each_of_two_masks_is_found():
    dims = {0: "batch", 1: "seq"}
    inputs = [
        ModelInput("x", torch.randn(BATCH, SEQ, DIM), dims),
        ModelInput("valid", torch.ones(BATCH, SEQ), dims),
        ModelInput("kept", torch.ones(BATCH, SEQ), dims),
    ]
    model = TwoMasks().eval()
    program = normalize(trace(LoadedModel(model, None, "in_memory", None), inputs))
    values = [item.value for item in inputs]
    assert padding_inputs(program, recognize(program), values) == {1: False, 2: False}
