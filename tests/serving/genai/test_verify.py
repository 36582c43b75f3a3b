"""Prompts of the comparison fit into any model's context, and hold no token with a meaning."""

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from moh_deploy.errors import BackendError, ValidationError
from moh_deploy.runtime.text.interface import TextInterface
from moh_deploy.serving.genai.verify import (
    PROMPT_LENGTHS,
    GenaiVerification,
    check_all_steps,
    genai_tokens,
    prompts_within,
)
from moh_deploy.validate.compare.generate_report import TokenDifference, TokenParity
from tests.report.json_schema import assert_of_form
from tests.serving.genai.decoder_package import ABOUT


@pytest.mark.parametrize(
    ("context", "lengths", "steps"),
    [(4096, PROMPT_LENGTHS, 64), (128, PROMPT_LENGTHS, 64), (20, (1, 7, 10), 10)],
)
@pytest.mark.parametrize("limited", ["context", "prompt"])
def test_prompts_fit_into_the_context(
    context: int, lengths: tuple[int, ...], steps: int, limited: str
):
    of_prompt = limited == "prompt"
    about = replace(ABOUT, context_length=8192 if of_prompt else context, pad_token_id=0)
    interface = TextInterface(about, (), (), longest_prompt=context if of_prompt else None)
    prompts, most = prompts_within(interface)
    assert (tuple(map(len, prompts)), most) == (lengths, steps)
    assert not {0, *ABOUT.eos_token_ids} & {token for prompt in prompts for token in prompt}


def test_text_that_stops_without_an_end_is_no_success():
    check_all_steps("b", 64, 64, [False, True])
    check_all_steps("b", 9, 64, [True, True])
    with pytest.raises(ValidationError, match="b, run by genai, stops after 9 of 64 tokens"):
        check_all_steps("b", 9, 64, [False, True])


@pytest.mark.parametrize(("margin", "equal"), [(1e-7, True), (0.5, False)])
def test_json_is_of_its_schema_and_says_what_rounding_explains(margin: float, equal: bool):
    parted = TokenDifference(2, 9, 31, 30, margin, 1e-6)
    parity = TokenParity("the package on function bodies", 137, (parted,), 192, "float32")
    report = {
        "package": "b",
        **GenaiVerification(Path("b"), PROMPT_LENGTHS, 64, parity).to_json(),
    }
    assert_of_form("verify-genai", report)
    assert report["equal"] is equal
    (said,) = report["parity"]["differences"]
    assert (said["token"], said["explained"]) == (31, equal)


# What goes wrong in genai is told as what it is.


def test_genai_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "onnxruntime_genai", None)
    with pytest.raises(BackendError, match="onnxruntime-genai cannot be imported") as refused:
        list(genai_tokens(Path("b"), [[1]], 0, 4))
    assert "pip install 'moh-deploy[genai]'" in str(refused.value.hint)


def test_bundle_that_genai_refuses_is_named(monkeypatch: pytest.MonkeyPatch):
    module = ModuleType("onnxruntime_genai")

    def refuse(root: str) -> None:
        raise RuntimeError("no kernel")

    module.Model, module.__version__ = refuse, "0.18"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "onnxruntime_genai", module)
    with pytest.raises(BackendError, match=r"onnxruntime-genai 0\.18 does not run b: no kernel"):
        list(genai_tokens(Path("b"), [[1]], 0, 4))
