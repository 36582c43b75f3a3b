"""What `make test-gpu` does, rehearsed on the emulator, before a GPU is at hand."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.cuda import abi
from tests.cuda.libraries import Emulator
from tests.gpu import correctness, primitives, stored_cases, timings
from tests.gpu.build import PLUGINS, sources
from tests.gpu.prepare import prepare


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gpu") / "cases.npz"
    prepare(path)
    return path


def test_stored_cases_are_right(emulator: Emulator, stored: Path):
    cases = list(stored_cases.read_cases(stored))[::5]
    assert {case.op for case in cases} == {"MoHRouter", "MoHAttention", "MoHAggregatedAttention"}
    assert list(correctness.find_problems(emulator.library, cases, device="cpu")) == []


def test_wrong_result_is_found(emulator: Emulator, stored: Path):
    case = next(c for c in stored_cases.read_cases(stored) if c.name.endswith("rank3/float32"))
    wrong = replace(case, reference=case.reference + 1e-4)
    problems = list(correctness.find_problems(emulator.library, [wrong], device="cpu"))
    assert len(problems) == len(correctness.PLANS)
    assert "elements are wrong" in problems[0]


def test_primitives_are_recorded(
    emulator: Emulator, stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(primitives, "CASES", stored)
    count = primitives.record(emulator.library, tmp_path / "golden.npz", device="cpu")
    with np.load(tmp_path / "golden.npz") as golden:
        assert len(golden.files) == 2 * count > 0


@pytest.mark.parametrize("tactic", ["chosen", *abi.TACTICS])
@pytest.mark.parametrize("causal", [False, True])
def test_timed_call_computes_attention(emulator: Emulator, tactic: str, causal: bool):
    shape = timings.Shape("small", 2, 4, 2, 70, 72, causal)
    tensors = timings.Tensors.draw(shape, 0.75, torch.float16, seed=0, device="cpu")
    assert float((tensors.gates != 0).double().mean()) == 0.75
    call = timings.Call(emulator.library, tensors, tactic)
    assert timings.error(tensors, call) < 4e-3


def test_build_compiles_every_source():
    listed = re.findall(r"\S+\.cu\b", (PLUGINS / "cuda" / "sources.cmake").read_text())
    assert [path.relative_to(PLUGINS / "cuda").as_posix() for path in sources()] == listed
    assert all(path.is_file() for path in sources())
