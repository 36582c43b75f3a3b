"""Decoders with their caches in place, against their originals, token by token."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from packaging import version
from torch import nn

import moh_deploy
from moh_deploy.package import OnnxPackage
from moh_deploy.package.cache_buffers import BUFFER
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.onnxruntime.session import open_session
from tests.nightly import nightly
from tests.strangers.language_llamas import VOCAB, DynamicCache, Qwen3Step
from tests.zoo.model import seeded

pytestmark = [
    nightly,
    pytest.mark.skipif(
        version.parse(ort.__version__) < version.parse("1.25"),
        reason="this ONNX Runtime may have no TensorScatter",
    ),
]

LAYERS, KV_HEADS, HEAD_DIM, ROOM = 2, 4, 8, 40
Pasts = Sequence[tuple[torch.Tensor, torch.Tensor]]


class PaddedDecoder(Qwen3Step):
    """As language models are exported: padding by a mask, positions that count valid tokens."""

    def forward(self, input_ids, attention_mask, past_key_values: Pasts):
        cache = DynamicCache.from_legacy_cache(past_key_values)
        seq, total = input_ids.shape[1], attention_mask.shape[1]
        before = cache.get_seq_length()
        h = self.embed_tokens(input_ids)
        position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -seq:]
        rows = torch.arange(before, before + seq)
        seen = torch.arange(total) <= rows[:, None]
        mask = seen[None, None] & attention_mask[:, None, None, :].bool()
        # Padding sees itself, so that no row of the softmax is empty.
        mask = mask | (torch.arange(total) == rows[:, None])[None, None]
        rope = self.rotary_emb(h, position_ids)
        for norm, layer in zip(self.norms, self.layers, strict=False):
            h = h + layer(norm(h), rope, mask, past_key_values=cache)
        logits = F.linear(self.norms[-1](h), self.embed_tokens.weight)
        return {
            "logits": logits,
            "present": list(zip(cache.key_cache, cache.value_cache, strict=True)),
        }


class UnmaskedDecoder(Qwen3Step):
    """Positions, rotations and what a token sees, all from how long the cache is."""

    def forward(self, input_ids, past_key_values: Pasts):
        cache = DynamicCache.from_legacy_cache(past_key_values)
        before, seq = cache.get_seq_length(), input_ids.shape[1]
        h = self.embed_tokens(input_ids)
        rows = torch.arange(before, before + seq)
        seen = torch.arange(before + seq)[None, :] <= rows[:, None]
        rope = self.rotary_emb(h, rows[None])
        for norm, layer in zip(self.norms, self.layers, strict=False):
            h = h + layer(norm(h), rope, seen[None, None], past_key_values=cache)
        logits = F.linear(self.norms[-1](h), self.embed_tokens.weight)
        return {
            "logits": logits,
            "present": list(zip(cache.key_cache, cache.value_cache, strict=True)),
        }


def pasts(batch: int, length: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    shape = (batch, KV_HEADS, length, HEAD_DIM)
    return [tuple(torch.randn(shape, generator=generator) for _ in range(2)) for _ in range(LAYERS)]


def exported(module: nn.Module, output: Path, *, with_mask: bool) -> OnnxPackage:
    ids = torch.randint(1, VOCAB, (2, 3), generator=torch.Generator().manual_seed(2))
    mask = torch.ones(2, 8, dtype=torch.int64)
    mask[0, :2] = 0
    inputs = {"input_ids": ids} | ({"attention_mask": mask} if with_mask else {})
    dynamic = ["input_ids:0=batch,1=seq"]
    dynamic += ["attention_mask:0=batch,1=total"] if with_mask else []
    dynamic += [
        f"past_key_values.{layer}.{part}:0=batch,2=past"
        for layer in range(LAYERS)
        for part in range(2)
    ]
    moh_deploy.export(
        module,
        output,
        inputs={**inputs, "past_key_values": pasts(2, 5)},
        dynamic=dynamic,
        cache="in-place",
        require_layers="all",
    )
    return OnnxPackage.open(output)


@pytest.mark.parametrize("kernels", ["off", "auto"])
@pytest.mark.parametrize(("make", "with_mask"), [(PaddedDecoder, True), (UnmaskedDecoder, False)])
def test_twenty_steps_behind_a_prompt_are_those_of_the_original(
    tmp_path: Path, make: type[nn.Module], with_mask: bool, kernels: str
):
    module = seeded(make)().eval()
    package = exported(module, tmp_path / "package", with_mask=with_mask)
    caches = package.manifest.caches
    assert len(caches.buffers) == 2 * LAYERS
    runner = open_session(package, Variant(kernels=kernels))
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(1, VOCAB, (3, 7), generator=generator)
    mask = torch.ones(3, 7, dtype=torch.int64)
    if with_mask:  # prompts of 7, 4 and 1 tokens
        mask[1, :3] = 0
        mask[2, :6] = 0
    old = pasts(3, 0)
    shape = (3, KV_HEADS, ROOM, HEAD_DIM)
    buffers = {buffer.past: np.full(shape, np.nan, np.float32) for buffer in caches.buffers}
    for step in range(21):
        masks = [mask] if with_mask else []
        with torch.no_grad():
            expected = module(ids, *masks, old)
        feeds = {"input_ids": ids.numpy(), **buffers}
        if with_mask:
            feeds["attention_mask"] = mask.numpy()
        else:
            feeds[caches.past_length] = np.asarray(mask.shape[1] - ids.shape[1])
        got = runner.run(feeds)
        logits = expected["logits"][:, -1].numpy()
        np.testing.assert_allclose(
            got["logits"][:, -1], logits, rtol=1e-3, atol=1e-3, err_msg=f"step {step}"
        )
        assert (got["logits"][:, -1].argmax(-1) == logits.argmax(-1)).all()
        buffers = {buffer.past: got[buffer.present] for buffer in caches.buffers}
        old, ids = expected["present"], torch.from_numpy(logits.argmax(-1)[:, None])
        mask = torch.cat([mask, torch.ones(3, 1, dtype=torch.int64)], dim=1)
    assert package.manifest.dims.keys() >= {"batch", "seq", BUFFER}


def test_package_is_compared_with_its_original_which_has_no_room(tmp_path: Path):
    module = seeded(UnmaskedDecoder)().eval()
    package = exported(module, tmp_path / "package", with_mask=False)
    original = moh_deploy.load_original(module)
    report = moh_deploy.verify(package.root, against=[original], kernels="off", vectors=3)
    assert report.failure is None
    assert {output.name for output in report.outputs} >= {
        "logits",
        package.manifest.caches.buffers[0].present,
    }
    with torch.no_grad():
        module.embed_tokens.weight += 0.1
    other = moh_deploy.load_original(module)
    assert moh_deploy.verify(package.root, against=[other], vectors=3).failure is not None
    kinds = ["eager", "plain-onnx"]
    measured = moh_deploy.bench(package.root, baselines=kinds, original=original)
    assert measured.failure is None
    assert len(measured.results) == 3
