"""What goes wrong in genai is told as what it is."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from moh_deploy.errors import BackendError
from moh_deploy.serving.genai.verify import genai_tokens


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
