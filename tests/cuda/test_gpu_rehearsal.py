"""What `python -m tests.gpu` does, rehearsed on the emulator, before a GPU is at hand."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.cuda import abi, conformance, golden
from tests.cuda.libraries import ROOT, Emulator
from tests.cuda.stage_runs import write_tool
from tests.gpu import aggregated, correctness, primitives, router, timings, workloads
from tests.gpu.attention import Hiding, KernelCall, Tensors, reference, with_gates
from tests.gpu.attention_candidates import CANDIDATES
from tests.gpu.build import PLUGINS, sources
from tests.gpu.device import Host
from tests.gpu.kernels import Bench
from tests.gpu.prepare import GPU_OPS, prepare
from tests.gpu.race import Entrant, Expected, TorchCall, race
from tests.gpu.steps import Facts, Wrong
from tests.gpu.stored_cases import Tolerance
from tests.gpu.workloads import AttentionShape
from tests.nightly import nightly, sampled

TOLERANCE = Tolerance(2e-3, 2e-3)
TIES = ("flat", "tie", "equal")  # torch breaks them as it likes


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gpu") / "cases.npz"
    prepare(path)
    return path


@pytest.fixture
def bench(emulator: Emulator, stored: Path) -> Bench:
    bench = Bench(Host(), stored)
    bench.library_path = emulator.path
    return bench


# Correctness.


def test_wrong_result_is_found(bench: Bench):
    index = [name for name, *_ in bench.cases.names].index("MoHAttention/plain_rank3/float32")
    case = bench.cases.case(index)
    wrong = replace(case, reference=case.reference + 1e-4)
    problems = correctness.find_problems(bench, wrong)
    assert len(problems) == len(correctness.PLANS)
    assert "elements are wrong" in problems[0]


def test_library_of_other_sources_is_refused(bench: Bench, emulator: Emulator, monkeypatch):
    class Other(abi.RouterArgs):
        _fields_ = (("more", abi.c_int32),)

    Other.__name__ = "RouterArgs"
    monkeypatch.setattr(
        abi,
        "STRUCTS",
        tuple(Other if struct is abi.RouterArgs else struct for struct in abi.STRUCTS),
    )
    with pytest.raises(RuntimeError, match="built from other sources than these: its RouterArgs"):
        bench.library  # noqa: B018


# Golden vectors.


def test_primitives_are_recorded_and_read_back(bench: Bench, tmp_path: Path):
    for name in bench.cases.primitives:
        assert primitives.primitive(bench, name, str(tmp_path)) == {}
    path = tmp_path / golden.GOLDEN.name
    assert path.stat().st_size < golden.MOST_BYTES
    recorded = golden.read(path)
    assert recorded.keys() == conformance.PRIMITIVES.keys()
    for name, vectors in recorded.items():
        got = conformance.run(bench.library.functions, name, vectors.words_in)
        assert conformance.find_difference(name, vectors.words_in, got, vectors.words_out) is None
        assert len(vectors.words_in) >= 2


def test_primitive_that_is_wrong_is_recorded_all_the_same(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    exact = primitives.run
    monkeypatch.setattr(primitives, "run", lambda *given: exact(*given) ^ np.uint32(1))
    with pytest.raises(Wrong, match=r"votes: .* words differ"):
        primitives.primitive(bench, "votes", str(tmp_path))
    recorded = golden.read(tmp_path / golden.GOLDEN.name)["votes"]
    right = conformance.outputs("votes", recorded.words_in)
    np.testing.assert_array_equal(recorded.words_out, right ^ 1)


@pytest.mark.parametrize(
    ("name", "ulps"), [("exp2_approx", 2), ("mma_m16n8k16_half", 1), ("votes", 0)]
)
def test_golden_vectors_are_compared_by_the_tolerance_of_the_primitive(name: str, ulps: int):
    words = conformance.inputs(name)
    expected = conformance.outputs(name, words)
    block, word = np.argwhere((expected > 1 << 23) & (expected < 1 << 30))[0] if ulps else (0, 0)
    for off, is_right in ((ulps, True), (ulps + 1, False)):
        got = expected.copy()
        got[block, word] += np.uint32(off)
        problem = conformance.find_difference(name, words, got, expected)
        assert (problem is None) == is_right


# Timings.


def small(
    *, causal: bool = False, queries: int = 20, kv_heads: int = 2, hides: str = ""
) -> AttentionShape:
    return AttentionShape("small", 2, 4, kv_heads, queries, 20, 24, causal, hides)


def expected_of(tensors: Tensors) -> Expected:
    exact = reference(tensors)
    return Expected(exact, with_gates(exact, tensors.gates), TOLERANCE)


@sampled(3)
@pytest.mark.parametrize("tactic", ["chosen", *abi.TACTICS])
@pytest.mark.parametrize("causal", [False, True])
def test_timed_call_computes_attention(bench: Bench, tactic: str, causal: bool):
    shape = replace(small(causal=causal), queries=70, keys=70, head_dim=72)
    tensors, *_ = Tensors.draw(shape, 0.75, torch.float16, 2, "cpu")
    assert float((tensors.gates != 0).double().mean()) == 0.75
    KernelCall(bench, tensors, tactic)()
    assert expected_of(tensors).judge(tensors.output, gated=True, ours=True)["right"]


@pytest.mark.parametrize("hides", ["padding", "mask", "window", "lengths"])
def test_timed_call_hides_what_its_shape_says(bench: Bench, hides: str):
    queries = 3 if hides == "lengths" else 20
    tensors, *_ = Tensors.draw(
        small(causal=True, queries=queries, hides=hides), 0.75, torch.float32, 2, "cpu"
    )
    KernelCall(bench, tensors, "chosen")()
    assert expected_of(tensors).judge(tensors.output, gated=True, ours=True)["right"]
    # With nothing hidden but by position, the result is another.
    plain = replace(tensors, shape=small(queries=queries), hiding=Hiding(tensors.hiding.seen))
    KernelCall(bench, plain, "chosen")()
    assert not expected_of(tensors).judge(tensors.output, gated=True, ours=True)["right"]


@pytest.mark.parametrize("shape", workloads.FULL.masked, ids=lambda shape: shape.name)
def test_masked_shapes_hide_as_their_names_say(shape: AttentionShape):
    """Every query sees keys: a softmax over none would be NaN for the others."""
    for sequence in range(shape.batch):
        for query in (0, shape.queries // 2, shape.queries - 1):
            first, end = shape.seen(sequence, query)
            assert 0 <= first < end <= shape.keys
    assert shape.flops(1.0) < replace(shape, hides="", causal=False).flops(1.0)
    padded = {shape.tokens(sequence) for sequence in range(shape.batch)}
    assert (len(padded) == shape.batch) == (
        shape.hides in ("padding", "lengths") or shape.batch < 2
    )


@sampled(2)
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=nightly)])
@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(small(), marks=nightly, id="grouped"),
        pytest.param(small(causal=True), id="causal"),
        pytest.param(small(causal=True, queries=1), id="decode"),
        pytest.param(small(kv_heads=4), marks=nightly, id="ungrouped"),
        pytest.param(small(hides="padding"), marks=nightly, id="padding"),
        pytest.param(small(causal=True, hides="window"), marks=nightly, id="window"),
        pytest.param(small(causal=True, hides="mask"), marks=nightly, id="mask"),
        pytest.param(small(causal=True, queries=1, hides="lengths"), marks=nightly, id="lengths"),
    ],
)
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_every_candidate_computes_the_same(bench: Bench, shape: AttentionShape, compiled: bool):
    """Those that a CPU has: what GPUs alone have refuses."""
    sets = Tensors.draw(shape, 0.5, torch.float32, 2, "cpu")
    candidates = [c for c in CANDIDATES if c.compiled == compiled]
    entries = {c.name: lambda c=c: c.enter(bench, sets) for c in candidates}
    ours = [c.name for c in candidates if c.ours]
    rows = race(Host(), entries, ours, expected_of(sets[0]), workloads.SMALL.effort)
    refused = {name for name, row in rows.items() if "refused" in row}
    torchs = {f"{n}{g}" for n in ("cudnn", "efficient") for g in ("", " times gates")}
    assert refused <= torchs | {"sparse by Triton", "dense by Triton"}
    wrong = {name: row for name, row in rows.items() if not row.get("right", True)}
    assert wrong == {}
    assert all(float(row["us"]) > 0 for row in rows.values() if "refused" not in row)


def test_candidate_that_computes_something_else_is_told():
    exact = torch.ones(8, 8, dtype=torch.float64)
    expected = Expected(exact, exact, TOLERANCE)
    effort = workloads.SMALL.effort
    entries = {
        "right": lambda: Entrant([TorchCall(torch.clone, [exact])], gated=True),
        "wrong": lambda: Entrant([TorchCall(torch.neg, [exact])], gated=True),
    }
    rows = race(Host(), entries, ["right"], expected, effort)
    assert (rows["right"]["right"], rows["wrong"]["right"]) == (True, False)


def test_wrong_kernel_fails_a_timing(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(timings, "with_gates", lambda exact, gates: exact)
    with pytest.raises(Wrong, match=r"beyond the tolerance: chosen by .*, sparse by") as caught:
        timings.attention(
            bench, small().json(), 0.5, "float32", False, workloads.SMALL.effort.json()
        )
    assert "candidates" in caught.value.facts


def test_best_of_the_others_is_one_that_is_right(bench: Bench):
    rows: dict[str, Facts] = {
        "ours": {"us": 2.0, "right": True, "gated": True},
        "fast and wrong": {"us": 1.0, "right": False, "gated": True},
        "slow": {"us": 6.0, "right": True, "gated": True},
        "without gates": {"us": 3.0, "right": True, "gated": False},
        "refuses": {"refused": "no"},
    }
    facts = timings.concluded({}, rows, ["ours"])
    assert (facts["best_gated"], facts["times_best_gated"]) == ("slow", 3.0)
    assert (facts["best_plain"], facts["times_best_plain"]) == ("without gates", 1.5)


@pytest.mark.parametrize("op", ["MoHAggregatedAttention", "MoHRouter"])
def test_formulas_of_torch_are_those_of_the_contract(bench: Bench, op: str):
    """On the cases that have all the inputs which the timings have."""
    tried = 0
    for index, (name, case_op, dtype) in enumerate(bench.cases.names):
        if case_op != op or dtype != "float32" or any(kind in name for kind in TIES):
            continue
        case = bench.cases.case(index)
        if any(tensor is None or 0 in tensor.shape for tensor in case.tensors):
            continue
        inputs = [t.to_torch().double() for t in case.tensors if t is not None]
        if op == "MoHRouter":
            if case.attributes["gate_mode"] != "weighted":
                continue
            k = int(case.attributes["top_k"])
            rows = [item.flatten(0, 1) for item in inputs]
            got = router.route(*rows, k)
        else:
            square = case.attributes["height"] == case.attributes["width"]
            windows = {case.attributes["kernel_height"], case.attributes["kernel_width"]}
            if not (square and windows == {3} and case.attributes["normalize"]):
                continue
            got = aggregated.attend(*inputs)
        right = torch.from_numpy(case.reference).reshape(got.shape)
        torch.testing.assert_close(got, right, atol=1e-6, rtol=1e-6)
        tried += 1
    assert tried > 0


# From end to end, as a person runs it.


def rehearse(emulator: Emulator, stored: Path, out: Path, *options: str, path: Path | None) -> str:
    """Rehearse, require that it ends well, and return what was printed."""
    command = [sys.executable, "-m", "tests.gpu", "--rehearse", f"--out={out}", *options]
    command += [f"--library={emulator.path}", f"--cases={stored}"]
    command += ["--worker=tests.cuda.rehearsal_worker"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if path is not None:
        environment["PATH"] = f"{path}:{environment['PATH']}"
    ran = subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=900,
    )
    assert ran.returncode == 0, ran.stdout
    return ran.stdout


def rows_of(report: Path) -> dict[str, Facts]:
    return {row["step"]: row for row in json.loads(report.read_text())["rows"]}


@nightly
def test_deep_stage_runs_what_is_there(emulator: Emulator, stored: Path, tmp_path: Path):
    """With stand-ins for the tools, which run what is beneath them."""
    from tests.cuda.trt import builds

    tools = tmp_path / "tools"
    tools.mkdir()
    # Options come first; what is behind them, and behind the filter's value, is the program.
    run_the_rest = 'while [ "${1#-}" != "$1" ] || [ "$1" = kns=moh ]; do shift; done; exec "$@"'
    write_tool(
        tools / "compute-sanitizer",
        'case "$1" in --help) echo --kernel-name; exit 0;; esac; ' + run_the_rest,
    )
    write_tool(
        tools / "ncu",
        'for a; do case "$a" in --log-file=*) f="${a#--log-file=}";; --kernel-name=*)'
        ' k="${a#--kernel-name=}";; esac; done; echo "$k" >"$f"; ' + run_the_rest,
    )
    out = tmp_path / "out"
    options = (
        "--stage=deep",
        f"--plugin={builds.plugin_on_emulated(emulator.path)}",
        f"--harness={builds.harness()}",
    )
    rehearse(emulator, stored, out, *options, path=tools)
    rows = rows_of(out / "deep.json")
    assert {row["status"] for row in rows.values()} <= {"passed", "missing"}, rows
    kinds = {step.split("/")[0] for step, row in rows.items() if row["status"] == "passed"}
    assert kinds == {"capture", "profile", "sanitize", "plugin", "far_apart"}
    by_plugin = {row["status"] for step, row in rows.items() if step.startswith("plugin/")}
    assert by_plugin == {"passed"}
    assert len(list(out.iterdir())) <= 8


@nightly
def test_all_stages_run_one_after_the_other(emulator: Emulator, stored: Path, tmp_path: Path):
    printed = rehearse(emulator, stored, tmp_path, path=None)
    ended = re.findall(r"^(\w+): exit status 0$", printed, re.MULTILINE)
    assert ended == ["correct", "speed", "deep"]
    cases = [step for step in rows_of(tmp_path / "correct.json") if step.startswith("case/")]
    assert {case.split("/")[1] for case in cases} == set(GPU_OPS)
    assert len(golden.read(tmp_path / "primitives.npz")) == len(conformance.PRIMITIVES)


def test_build_compiles_every_source():
    listed = re.findall(r"\S+\.cu\b", (PLUGINS / "cuda" / "sources.cmake").read_text())
    assert [path.relative_to(PLUGINS / "cuda").as_posix() for path in sources()] == listed
    assert all(path.is_file() for path in sources())
