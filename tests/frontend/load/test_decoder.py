"""Language models with a cache of whatever form take tensors, and what is none is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from moh_deploy.errors import ConfigError, ExportError
from moh_deploy.frontend.load.decoder import make_decoder
from tests.text.model_directories import plain_torch_model


class Grown:
    """A cache as transformers has had it: two lists, and `update`."""

    def __init__(self):
        self.key_cache, self.value_cache = [], []

    def update(self, key, value, layer):
        assert layer == len(self.key_cache)
        self.key_cache.append(key)
        self.value_cache.append(value)


class WithObject(nn.Module):
    """Takes and returns such an object, in a dict."""

    def __init__(self, fault=None):
        super().__init__()
        self.model, self.fault = plain_torch_model(), fault

    def forward(self, input_ids, attention_mask=None, past_key_values=None, use_cache=False):
        past = past_key_values and list(
            zip(past_key_values.key_cache, past_key_values.value_cache, strict=True)
        )
        positions = (attention_mask.cumsum(-1) - 1)[:, -input_ids.shape[1] :]
        if self.fault == "positions":
            positions = torch.arange(input_ids.shape[1])[None].expand(input_ids.shape)
        logits, pairs = self.model(input_ids, attention_mask, positions, past or None, True)
        if self.fault == "looks ahead":
            logits = logits + logits.mean(1, keepdim=True)
        cache = Grown()
        if self.fault == "swallowed":
            pairs = []
        for layer, (key, value) in enumerate(pairs):
            kept = key[:, :, -3:] if self.fault == "window" else key
            unseen = self.fault == "one swallowed" and layer == 1
            cache.update(key[:, :, :0] if unseen else kept, value, layer)
        return {"logits": logits, "past_key_values": cache if self.fault != "none" else None}


@pytest.mark.parametrize("make", [plain_torch_model, lambda: WithObject().eval()])
def test_cache_is_told_from_a_run(make):
    decoder = make_decoder(make())
    assert decoder.caches == ((2, 8, 8), (2, 8, 8))
    assert (decoder.dtype, decoder.vocab_size) == (torch.float32, 97)


def test_padding_on_the_left_changes_no_logits_behind_it():
    plain, module = plain_torch_model(), plain_torch_model()
    make_decoder(module)
    ids, mask = torch.tensor([[0, 0, 7, 8, 9]]), torch.tensor([[0, 0, 1, 1, 1]])
    empty = tuple({"key": torch.zeros(1, 2, 0, 8), "value": torch.zeros(1, 2, 0, 8)} for _ in "ab")
    with torch.no_grad():
        found = module(ids, mask, empty)["logits"]
        expected = plain(ids[:, 2:])[0]
    assert torch.allclose(found[:, 2:], expected, atol=1e-5)


def test_positions_are_counted_from_the_mask():
    # Rotary angles hang on distances alone, so that logits would not show a shift.
    module, seen = plain_torch_model(), []
    cls = type(module)

    class Noting(cls):
        def forward(self, input_ids, attention_mask, position_ids, past_key_values, use_cache):
            seen.append(position_ids.tolist())
            return super().forward(
                input_ids, attention_mask, position_ids, past_key_values, use_cache
            )

    module.__class__ = Noting
    make_decoder(module)
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    past = tuple({"key": torch.zeros(2, 2, 3, 8), "value": torch.zeros(2, 2, 3, 8)} for _ in "ab")
    module(torch.tensor([[7, 8], [5, 6]]), mask, past)
    assert seen[-1] == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("positions", "behind a cache the model computes something else"),
        ("looks ahead", "a token's logits depend on tokens behind it: those of the first 2 are"),
        ("window", r"holds \[3, 4\] tokens after 4"),
        ("none", "returns a NoneType for past_key_values"),
        ("swallowed", "returns a Grown that is empty after 4 tokens: no keys of every layer"),
        ("one swallowed", "empty after 4 tokens: no keys of layer 1"),
    ],
)
def test_cache_that_is_none_is_refused(fault: str, words: str):
    with pytest.raises(ExportError, match=words):
        make_decoder(WithObject(fault).eval())


def test_model_that_takes_no_cache_is_refused():
    with pytest.raises(ConfigError, match="the forward of Linear takes input"):
        make_decoder(nn.Linear(2, 2))
