"""Padding in an export: left out of every proof where it is known, and shown where it is not."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from typing_extensions import Unpack

import moh_deploy
from moh_deploy.api.export import ExportSettings
from moh_deploy.errors import ConfigError, ExportError, ValidationError
from moh_deploy.frontend.export_report import ExportReport
from moh_deploy.package import OnnxPackage
from moh_deploy.validate.reference.input_sets import sized_inputs
from tests.exporting import prove_in_this_process
from tests.nightly import nightly, one_in
from tests.report.shown import as_markdown


@pytest.fixture(autouse=True)
def _proof_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    prove_in_this_process(monkeypatch)


VOCAB, DIM, HEADS, DEPTH = 31, 16, 4, 1


class Attention(nn.Module):
    """Heads chosen by a top-k of a softmax, attention in one operator."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(DIM, HEADS, bias=False)
        self.qkv = nn.Linear(DIM, 3 * DIM)
        self.out = nn.Linear(DIM, DIM)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        batch, seq, _ = x.shape
        heads = self.qkv(x).view(batch, seq, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*heads, attn_mask=mask)  # [B, H, S, D]
        gates = self.gates(self.router(self.routed(x)).softmax(-1))
        mixed = mixed * gates.transpose(1, 2).unsqueeze(-1)
        return self.out(mixed.transpose(1, 2).reshape(batch, seq, DIM))

    def routed(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def gates(self, scores: torch.Tensor) -> torch.Tensor:
        best, chosen = scores.topk(2, dim=-1)
        return torch.zeros_like(scores).scatter(-1, chosen, best)


class Decoder(nn.Module):
    """A causal language model in the style of Hugging Face, whose mask of keys is made once."""

    attention: type[Attention] = Attention

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(VOCAB, DIM)
        self.layers = nn.ModuleList(self.attention() for _ in range(DEPTH))
        self.norm = nn.LayerNorm(DIM)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        x, mask = self.embed(input_ids), self.keys(input_ids, attention_mask)
        for layer in self.layers:
            x = x + layer(self.norm(x), mask)
        return x

    def keys(self, ids: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        seq = ids.shape[1]
        return (valid[:, None, None, :] != 0) & torch.ones(seq, seq).bool().tril()


class UnmasksEagerly(Decoder):
    """Opens rows that no key is left in, where that is not traced, as Hugging Face's masks did."""

    def keys(self, ids: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        mask = super().keys(ids, valid)
        if not torch.compiler.is_exporting():
            mask = mask | ~mask.any(-1, keepdim=True)
        return mask


IDS = torch.randint(1, VOCAB, (3, 7), generator=torch.Generator().manual_seed(1))
LEFT = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [1] * 7, [0, 1, 1, 1, 1, 1, 1]])
TWO_DYNAMIC = [f"{name}:0=batch,1=seq" for name in ("input_ids", "attention_mask", "kept")]
DYNAMIC = ["input_ids:0=batch,1=seq", "attention_mask:0=batch,1=seq"]


def export(
    model: nn.Module, output: Path, mask: torch.Tensor = LEFT, **settings: Unpack[ExportSettings]
) -> ExportReport:
    inputs = {"input_ids": IDS, "attention_mask": mask}
    usual: ExportSettings = {"inputs": inputs, "dynamic": DYNAMIC}
    return moh_deploy.export(model.eval(), output, **{**usual, **settings})


class NormedAttention(Attention):
    """Routes by directions: a token of zeros has none, and its router makes NaN."""

    def routed(self, x: torch.Tensor) -> torch.Tensor:
        return x / x.norm(dim=-1, keepdim=True)


class ZeroPadding(Decoder):
    """Makes padding zeros, and hides it from no attention: nothing shows what 0 means."""

    attention = NormedAttention

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        kept = attention_mask.unsqueeze(-1)
        x = self.embed(input_ids) * kept
        causal = torch.ones(x.shape[1], x.shape[1]).bool().tril()
        for layer in self.layers[:1]:
            # Keys and values of zeros are numbers; what a router makes of them is not.
            x = x + layer(x, causal)
        return x


class WrongAtPadding(UnmasksEagerly):
    """Differs where it is traced, at tokens that are valid, too."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        x = super().forward(input_ids, attention_mask)
        return x if torch.compiler.is_exporting() else x + 0.01


def test_mask_that_the_graph_shows_is_used_and_said(tmp_path: Path):
    report = export(UnmasksEagerly(), tmp_path / "package")
    assert (report.valid_tokens, report.valid_tokens_found) == ("attention_mask", True)
    assert report.replaced_layers == DEPTH
    shown = as_markdown(report, "m").replace("\\_", "_")
    assert "The graph shows that 'attention_mask' is 0 for padding" in shown
    assert "17 of 54 tokens are padding by 'attention_mask', and were not compared." in shown
    manifest = OnnxPackage.open(tmp_path / "package").manifest
    assert manifest.valid_tokens == "attention_mask"
    verified = moh_deploy.verify(tmp_path / "package", kernels="off")
    assert (verified.equal, verified.tokens.left_out) == (True, 17)


@nightly
def test_every_token_is_compared_on_request_and_the_refusal_shows_where_it_differs(tmp_path: Path):
    with pytest.raises(ExportError, match=r"differs from the original model at batch=3") as refused:
        export(UnmasksEagerly(), tmp_path / "package", valid_tokens="all")
    assert "It does so only where input 'attention_mask' is 0." in refused.value.message
    assert "--valid-tokens attention_mask leaves these tokens out" in (refused.value.hint or "")
    report = export(Decoder(), tmp_path / "package", valid_tokens="all")
    assert report.valid_tokens is None
    assert report.runs[0].tokens is None
    assert OnnxPackage.open(tmp_path / "package").manifest.valid_tokens is None


def test_difference_at_valid_tokens_is_refused_though_padding_is_left_out(tmp_path: Path):
    with pytest.raises(ExportError, match=r"output 'output' is off by 0\.01\d*,") as refused:
        export(WrongAtPadding(), tmp_path / "package", valid_tokens="attention_mask")
    assert "only where" not in refused.value.message


def test_mask_that_is_none_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="valid_tokens is 'attention_msk', but the model has inp"):
        export(Decoder(), tmp_path / "package", valid_tokens="attention_msk")
    with pytest.raises(ConfigError, match=r"'input_ids' is int64\[3, 7\] and holds other values"):
        export(Decoder(), tmp_path / "package", valid_tokens="input_ids")


@nightly
def test_router_that_makes_nan_of_padding_refuses_no_right_model(tmp_path: Path):
    with pytest.raises(ValidationError, match="the reference is itself NaN") as refused:
        export(ZeroPadding(), tmp_path / "package")
    assert "It is so only where input 'attention_mask' is 0." in refused.value.message
    assert "--valid-tokens attention_mask" in (refused.value.hint or "")
    report = export(ZeroPadding(), tmp_path / "package", valid_tokens="attention_mask")
    assert report.replaced_layers == 1
    (layer,) = report.layers
    assert layer.router_replaced
    run = OnnxPackage.open(tmp_path / "package").vectors[0]
    assert np.isnan(run.gates[0][LEFT.numpy() == 0]).any(-1).all()
    assert not np.isnan(run.gates[0][LEFT.numpy() == 1]).any()
    assert run.scores[0] is not None
    # Padding, whose gates are all NaN, counts for nothing: two heads of four are open.
    assert layer.active_share == 0.5


class Silence(Decoder):
    """Is told which tokens are padding."""

    def keys(self, ids: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        return super().keys(ids, ~valid)


def test_example_whose_tokens_are_all_padding_is_given_valid_ones(tmp_path: Path):
    report = export(Silence(), tmp_path / "package", torch.ones_like(LEFT).bool())
    assert report.valid_tokens == "not attention_mask"
    package = OnnxPackage.open(tmp_path / "package")
    assert (~package.vectors[0].inputs["attention_mask"]).any(axis=1).all()
    assert package.manifest.rounding is not None
    assert package.manifest.rounding.layers[0].gates.rms > 0


class TwoMasks(Decoder):
    """Takes keys away by one mask of a sequence, and by another."""

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, kept: torch.Tensor
    ) -> torch.Tensor:
        x, layer = self.embed(input_ids), self.layers[0]
        heads = layer.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        scores = heads[0] @ heads[1].mT
        for mask in (attention_mask, kept):
            scores = scores.masked_fill(mask[:, None, None] == 0, -1e9)
        gates = layer.router(x).relu().transpose(1, 2).unsqueeze(-1)
        mixed = (scores.softmax(-1) @ heads[2]) * gates
        return x + layer.out(mixed.transpose(1, 2).flatten(2))


@nightly
@pytest.mark.parametrize("agree", [True, pytest.param(False, marks=nightly)])
def test_of_two_masks_that_the_graph_shows_one_is_taken_where_they_agree(
    agree: bool, tmp_path: Path
):
    kept = LEFT if agree else torch.ones_like(LEFT)
    inputs = {"input_ids": IDS, "attention_mask": LEFT, "kept": kept}
    report = export(TwoMasks(), tmp_path / "package", inputs=inputs, dynamic=TWO_DYNAMIC)
    assert report.padding_inputs == ("attention_mask", "kept")
    shown = as_markdown(report, "m").replace("\\", "")
    if agree:
        assert (report.valid_tokens, report.valid_tokens_found) == ("attention_mask", True)
        assert "It shows so of 'kept', too, with the same values in the example" in shown
    else:
        assert (report.valid_tokens, report.valid_tokens_found) == (None, False)
        assert "that 'attention_mask' and 'kept' tell padding, each of tokens" in shown
        assert "`--valid-tokens attention_mask`, or another of them, leaves" in shown


class TwoFiniteMasks(Decoder):
    """Overwrites scores of later keys, and adds to those of padding: both with -10000, as GPT-2
    did. Padding on the left leaves a query without any key, and with both numbers."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        x, layer = self.embed(input_ids), self.layers[0]
        query, key, value = layer.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        causal = torch.ones(x.shape[1], x.shape[1]).bool().tril()
        scores = torch.where(causal, query @ key.mT, torch.tensor(-1e4))
        scores = scores + (1.0 - attention_mask[:, None, None].float()) * -1e4
        gates = layer.router(x).relu().transpose(1, 2).unsqueeze(-1)
        mixed = (scores.softmax(-1) @ value) * gates
        return x + layer.out(mixed.transpose(1, 2).flatten(2))


@nightly
def test_two_finite_masks_of_which_an_example_without_padding_shows_one(tmp_path: Path):
    model, full = TwoFiniteMasks().eval(), torch.ones_like(LEFT)
    report = export(model, tmp_path / "package", full, valid_tokens="all")
    (layer,) = report.layers
    assert not layer.replaced
    assert re.search(
        r"differs from .*; a query whose keys are all hidden, some by -10000 and others by what mul"
        r" \(api/test_export_padding.py:\d+\) adds",
        layer.reason or "",
    )
    original = moh_deploy.load_original(model)
    for mask in (LEFT, LEFT.flip(1), full):
        path = tmp_path / "inputs.npz"
        np.savez(path, input_ids=IDS.numpy(), attention_mask=mask.numpy())
        for kernels in ("auto", "off"):
            moh_deploy.verify(
                tmp_path / "package", inputs=[path], against=[original], kernels=kernels
            ).raise_if_unequal()
    # Where it is known which tokens are valid, the others are left out.
    report = export(model, tmp_path / "known", full)
    assert (report.replaced_layers, report.valid_tokens) == (1, "attention_mask")


class TakesAdditive(UnmasksEagerly):
    """Is given what is added to scores, [batch, 1, queries, keys], but for causality."""

    def keys(self, ids: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        return super().keys(ids, (valid == 0)[:, 0, 0])


LOWEST = torch.finfo(torch.float32).min


@nightly
@pytest.mark.parametrize("lowest", one_in(2, [LOWEST, float("-inf")]))
def test_mask_that_is_added_to_scores_says_which_tokens_are_valid(lowest: float, tmp_path: Path):
    mask = torch.where(LEFT == 1, 0.0, lowest)[:, None, None].expand(3, 1, 7, 7)
    dynamic = [DYNAMIC[0], "attention_mask:0=batch,2=seq,3=seq"]
    with pytest.raises(ExportError, match="differs from the original"):
        export(TakesAdditive(), tmp_path / "package", mask, dynamic=dynamic)
    named: ExportSettings = {"dynamic": dynamic, "valid_tokens": "attention_mask"}
    report = export(TakesAdditive(), tmp_path / "package", mask, **named)
    assert (report.valid_tokens, report.runs[0].tokens.left_out) == ("attention_mask", 17)
    moh_deploy.verify(tmp_path / "package", kernels="off").raise_if_unequal()
    probed = moh_deploy.probe(tmp_path / "package", kernels="off", longest={"seq": 8})
    assert probed.count("failed") == 0
    assert any(result.case == "padding only: attention_mask hides all" for result in probed.results)
    (drawn,) = sized_inputs(OnnxPackage.open(tmp_path / "package"), {"seq": [9]})
    made = drawn.inputs["attention_mask"]
    assert (made.shape, (made == made[:, :, :1]).all()) == ((3, 1, 9, 9), True)


@pytest.mark.parametrize(
    ("mask", "why"),
    [
        (torch.full((3, 1, 1, 7), -1.0), "it holds -1, and not only 0"),
        (torch.full((3, 1, 7, 7), LOWEST).triu(1), "it hides other keys from one query than from"),
    ],
)
def test_mask_that_is_added_and_does_not_tell_is_refused(
    mask: torch.Tensor, why: str, tmp_path: Path
):
    with pytest.raises(ConfigError, match=rf"float32\[3, 1, \d, 7\], expected a mask .*{why}"):
        export(
            TakesAdditive(), tmp_path / "package", mask, dynamic=[], valid_tokens="attention_mask"
        )


@nightly
def test_configuration_names_the_mask_and_an_option_wins(tmp_path: Path):
    config = tmp_path / "model.yaml"
    config.write_text("valid_tokens: attention_mask\n")
    report = export(UnmasksEagerly(), tmp_path / "package", config=config)
    assert (report.valid_tokens, report.valid_tokens_found) == ("attention_mask", False)
    with pytest.raises(ExportError, match="differs from the original"):
        export(UnmasksEagerly(), tmp_path / "other", config=config, valid_tokens="all")
