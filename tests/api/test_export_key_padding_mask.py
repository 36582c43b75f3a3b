"""Masks that are True for padding, as PyTorch's `key_padding_mask` is: known by what they hide."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import moh_deploy
from moh_deploy.errors import ConfigError, PackageError
from moh_deploy.frontend.export_report import ExportReport
from moh_deploy.package import OnnxPackage
from moh_deploy.package.manifest_json import manifest_text
from moh_deploy.runtime.open_runner import find_deployed
from moh_deploy.serving.served_model import open_served
from moh_deploy.serving.settings import ServingSettings
from tests.exporting import prove_in_this_process
from tests.nightly import nightly
from tests.report.shown import as_markdown

WIDTH, HEADS, LAYERS = 16, 4, 1


@pytest.fixture(autouse=True)
def _proof_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    prove_in_this_process(monkeypatch)


class GatedAttention(nn.Module):
    """Self-attention in the signature of nn.MultiheadAttention, with a gate for each head."""

    def __init__(self) -> None:
        super().__init__()
        self.in_proj = nn.Linear(WIDTH, 3 * WIDTH)
        self.gate = nn.Linear(WIDTH, HEADS)
        self.out_proj = nn.Linear(WIDTH, WIDTH)
        self.gates = torch.zeros(0)

    def forward(self, x: torch.Tensor, key_padding_mask: torch.Tensor) -> torch.Tensor:
        batch, tokens, _ = x.shape
        heads = self.in_proj(x).view(batch, tokens, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        hidden = torch.zeros(key_padding_mask.shape, dtype=x.dtype)
        hidden = hidden.masked_fill(key_padding_mask, float("-inf"))[:, None, None, :]
        mixed = F.scaled_dot_product_attention(*heads, attn_mask=hidden)  # [B, H, S, D]
        # How many heads are open differs from token to token.
        gates = self.gate(x).relu()
        if not torch.compiler.is_exporting():
            self.gates = gates
        mixed = mixed * gates.transpose(1, 2).unsqueeze(-1)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class EncoderLayer(nn.Module):
    """A layer of nn.TransformerEncoder, norm first."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn = GatedAttention()
        self.linear1, self.linear2 = nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH)
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, src: torch.Tensor, src_key_padding_mask: torch.Tensor) -> torch.Tensor:
        src = src + self.self_attn(self.norm1(src), src_key_padding_mask)
        return src + self.linear2(F.relu(self.linear1(self.norm2(src))))


class Encoder(nn.Module):
    """Layers, and a mask that says nothing of its meaning by its name."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(EncoderLayer() for _ in range(LAYERS))

    def forward(self, src: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            src = layer(src, where)
        return src


def batch(*lengths: int, seed: int = 1) -> dict[str, torch.Tensor]:
    """Return sequences of these lengths, padded on the right."""
    longest = max(lengths)
    src = torch.randn(len(lengths), longest, WIDTH, generator=torch.Generator().manual_seed(seed))
    return {"src": src, "where": torch.arange(longest)[None] >= torch.tensor(lengths)[:, None]}


def export(output: Path, **settings: object) -> ExportReport:
    return moh_deploy.export(
        Encoder().eval(),
        output,
        inputs=batch(7, 3, 5),
        dynamic=["src:0=batch,1=seq", "where:0=batch,1=seq"],
        **settings,  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> OnnxPackage:
    root = tmp_path_factory.mktemp("encoder") / "package"
    with pytest.MonkeyPatch.context() as patch:
        prove_in_this_process(patch)
        report = export(root)
    assert (report.valid_tokens, report.valid_tokens_found) == ("not where", True)
    assert "shows that 'where' is 1 for padding" in as_markdown(report, "m").replace("\\", "")
    return OnnxPackage.open(root)


def test_recorded_runs_hold_padding_that_verify_leaves_out(package: OnnxPackage):
    masks = [run.inputs["where"] for run in package.vectors]
    assert any(mask[:, 0].any() for mask in masks)
    assert all(not mask.all(axis=1).any() for mask in masks)
    report = moh_deploy.verify(package.root, kernels="off")
    report.raise_if_unequal()
    padding = sum(int(mask.sum()) for mask in masks)
    assert (report.tokens.tokens, report.tokens.left_out) == (sum(m.size for m in masks), padding)


def test_served_metrics_count_what_the_models_own_gates_say(package: OnnxPackage):
    model = Encoder().eval()
    served = open_served(
        find_deployed(package.root), ServingSettings("m", threads=1, sample_every=1)
    )
    tokens, heads, mass = 0, [0] * LAYERS, [0.0] * LAYERS
    for seed in range(12):
        given = batch(*(1 + (seed * step) % 9 for step in (1, 2, 4)), seed=seed)
        served.answer({name: value.numpy() for name, value in given.items()})
        with torch.no_grad():
            model(*given.values())
        valid = ~given["where"]
        tokens += int(valid.sum())
        for index, layer in enumerate(model.layers):
            gates = layer.self_attn.gates[valid]
            heads[index] += int((gates != 0).sum())
            mass[index] += float(gates.abs().sum())
    families = {
        family.name: [series.value for series in family.samples] for family in served.families()
    }
    served.close()
    assert families["moh_routed_tokens_total"] == [tokens] * LAYERS
    assert families["moh_sampled_tokens_total"] == [tokens] * LAYERS
    assert families["moh_head_activations_total"] == heads
    routed = np.array(families["moh_gate_mass_total"]).reshape(LAYERS, -1).sum(axis=1)
    np.testing.assert_allclose(routed, mass, rtol=1e-5)


def test_mask_that_is_named_the_wrong_way_round_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="'where' is 1 for padding") as refused:
        export(tmp_path / "package", valid_tokens="where")
    assert refused.value.hint == "Name it 'not where', or leave the option out."


def test_manifest_with_the_mask_the_wrong_way_round_is_refused(
    package: OnnxPackage, tmp_path: Path
):
    root = tmp_path / "edited"
    root.mkdir()
    for name in package.manifest.files:
        (root / name).hardlink_to(package.root / name)
    (root / "manifest.json").write_text(
        manifest_text(replace(package.manifest, valid_tokens="where"))
    )
    with pytest.raises(PackageError, match="active_share"):
        OnnxPackage.open(root)


@nightly
def test_mask_is_named_with_its_meaning(package: OnnxPackage, tmp_path: Path):
    assert export(tmp_path / "package", valid_tokens="not where").valid_tokens == "not where"
    probed = moh_deploy.probe(package.root, kernels="off", longest={"seq": 9})
    assert probed.count("failed") == 0
    assert any(result.case == "padding only: where all 1" for result in probed.results)
    given = {name: value.numpy() for name, value in batch(4, 6).items()}
    np.savez(tmp_path / "user.npz", **given)
    original = moh_deploy.load_original(Encoder().eval())
    report = moh_deploy.verify(
        package.root, inputs=[tmp_path / "user.npz"], against=[original], kernels="off"
    )
    assert (report.equal, report.tokens.left_out) == (True, 2)
