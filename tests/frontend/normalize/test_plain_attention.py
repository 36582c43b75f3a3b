from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention

from moh_deploy.errors import ExportError
from moh_deploy.frontend.load.model import ModelInput
from moh_deploy.frontend.normalize.plain_attention import refuse_flex_attention
from moh_deploy.frontend.prove.original import run_example
from tests.exporting import assert_nothing_is_left, export
from tests.frontend.traced import loaded, plain_trace
from tests.nightly import nightly

X = torch.randn(1, 2, 5, 4, generator=torch.Generator().manual_seed(0))

# torch's, about running it without torch.compile
pytestmark = pytest.mark.filterwarnings("ignore:.*flex_attention called without:UserWarning")


_REFUSED = r"flex_attention \(normalize/test_plain_attention\.py:\d+\) has no form in ONNX; "


class Attention(nn.Module):
    """Scores fall with the distance of tokens; exported, where told so, as a mask that is added."""

    def __init__(self, *, prepared: bool) -> None:
        super().__init__()
        self.prepared = prepared

    def forward(self, x: Tensor) -> Tensor:
        if self.prepared and torch.compiler.is_exporting():
            places = torch.arange(x.shape[-2])
            return F.scaled_dot_product_attention(x, x, x, -(places[:, None] - places).abs() * 0.5)
        return flex_attention(x, x, x, score_mod=lambda s, b, h, i, j: s - (i - j).abs() * 0.5)


@nightly
def test_modules_that_call_it_are_named_with_what_to_call_instead():
    model = nn.Sequential(Attention(prepared=False), nn.ReLU(), Attention(prepared=False))
    with pytest.raises(ExportError, match=_REFUSED + r"called in 0, 2\.") as caught:
        refuse_flex_attention(plain_trace(model, X))
    assert "torch.compiler.is_exporting()" in caught.value.hint
    with pytest.raises(ExportError, match="called in the model itself"):
        refuse_flex_attention(plain_trace(model[0], X))


def test_export_refuses_it_before_it_runs_the_model(tmp_path: Path):
    specs = ("x:[1,2,5,4]:float32",)
    with pytest.raises(ExportError, match=_REFUSED):
        export(Attention(prepared=False), tmp_path / "package", input_specs=specs)
    assert_nothing_is_left(tmp_path / "package")


def test_what_to_call_instead_passes_and_is_compared_with_what_the_model_calls():
    model = Attention(prepared=True).eval()
    program = plain_trace(model, X)
    refuse_flex_attention(program)
    run, flops = run_example(loaded(model), [ModelInput("x", X)])
    assert flops is None
    torch.testing.assert_close(program.module()(X), run.outputs[0])
