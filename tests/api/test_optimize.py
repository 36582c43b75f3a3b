"""From a checkpoint to the fastest package that is still good, with planted times."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import moh_deploy
from moh_deploy.api import export as export_module
from moh_deploy.api import optimize as command
from moh_deploy.api import tune_within
from moh_deploy.api.bench import bench
from moh_deploy.api.verify import verify
from moh_deploy.errors import (
    CheckpointError,
    ConfigError,
    MoHDeployError,
    PackageError,
    ValidationError,
)
from moh_deploy.package import OnnxPackage
from moh_deploy.perf.bench.candidate import FreshRun
from moh_deploy.perf.bench.report import BenchReport
from moh_deploy.perf.optimize_report import OptimizeReport
from moh_deploy.perf.tune.contests import CONTEST, Contests, WithinTask
from moh_deploy.system.isolate import child_environment
from moh_deploy.system.npz import write_npz
from moh_deploy.validate.compare.parity_report import ParityReport
from tests import small_moh
from tests.exporting import prove_in_this_process
from tests.handmade_package import write_package
from tests.kernel_library import required_library
from tests.nightly import nightly

FLOAT32, INT8 = "float32 in ONNX Runtime", "int8 in ONNX Runtime"
WITHIN = "top-1 >= 0.8 * reference"
SPEC = "x:[batch=2,7,8]:float32"


@dataclass
class Meter:
    """Says that int8 is the fastest, and keeps what was timed; it may be interrupted."""

    stops_at: str = ""
    seen: list[str] = field(default_factory=list)

    def __call__(
        self, what: str, candidates: Mapping[str, Callable[[], object]]
    ) -> dict[str, tuple[float, ...]]:
        if what == CONTEST:
            self.seen.append(" ".join(candidates))
            if self.stops_at in candidates:
                raise KeyboardInterrupt
        ms = {FLOAT32: 10.0, INT8: 4.0}
        return {name: (ms.get(name, 1.0),) * 7 for name in candidates}


@dataclass(frozen=True)
class Given:
    """A checkpoint, samples, and the classes that the model sees in them."""

    model: Path
    inputs: Path
    labels: Path

    def optimize(
        self, output: Path, meter: Meter, monkeypatch: pytest.MonkeyPatch, **options: object
    ) -> OptimizeReport:
        """Search with planted times; everything else is real."""
        prove_in_this_process(monkeypatch)
        run = command.FastestSearch.run
        monkeypatch.setattr(
            command.FastestSearch,
            "run",
            lambda self, *args, **kwargs: run(self, *args, measure=meter, **kwargs),
        )
        given = {"inputs": [self.inputs], "labels": self.labels, "within": WITHIN, **options}
        given = {"runtime": "onnxruntime", **given}
        try:
            return moh_deploy.optimize(
                self.model, output, trust_pickle=True, threads=1, min_time=0.0, **given
            )
        finally:
            monkeypatch.setattr(command.FastestSearch, "run", run)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    required_library()
    folder = tmp_path_factory.mktemp("optimize")
    model = small_moh.build().eval()
    torch.save(model, folder / "model.pt")
    x = np.random.default_rng(0).standard_normal((70, 7, 8)).astype(np.float32)
    write_npz(folder / "val.npz", {"x": x})
    with torch.no_grad():
        np.save(folder / "labels.npy", model(torch.from_numpy(x)).argmax(-1).numpy())
    return Given(folder / "model.pt", folder / "val.npz", folder / "labels.npy")


@dataclass(frozen=True)
class Done:
    """What an optimization wrote and said."""

    output: Path
    report: OptimizeReport
    benched: BenchReport


def here_and_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try two precisions in one runtime, and start no process for what is timed."""
    monkeypatch.setattr(tune_within, "LOWER_PRECISIONS", ("int8",))
    fresh = FreshRun(None, None, None)
    monkeypatch.setattr(command, "bench", partial(bench, measure_fresh=lambda *_: fresh))


@pytest.fixture(autouse=True)
def _here_and_few(monkeypatch: pytest.MonkeyPatch) -> None:
    here_and_few(monkeypatch)


@pytest.fixture(scope="module")
def done(given: Given, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """One optimization from the checkpoint to the package, with what `bench` said."""
    output = tmp_path_factory.mktemp("done") / "fast"
    with pytest.MonkeyPatch.context() as monkeypatch:
        here_and_few(monkeypatch)
        timed = command.bench
        benched = []

        def keeping(*args: object, **options: object) -> BenchReport:
            benched.append(timed(*args, **options))
            return benched[-1]

        monkeypatch.setattr(command, "bench", keeping)
        report = given.optimize(output, Meter(), monkeypatch)
    return Done(output, report, benched[0])


def test_fastest_good_package_is_written_and_nothing_else_is_left(done: Done):
    assert [path.name for path in done.output.parent.iterdir()] == ["fast"]
    written = OnnxPackage.open(done.output).manifest
    assert (written.precision, written.runtime) == ("int8", "onnxruntime")
    assert written.tuning.within == (WITHIN,)
    assert moh_deploy.verify(done.output).equal
    assert (done.report.search.precision, done.report.search.output) == ("int8", done.output)


def test_float32_package_is_compared_with_the_original_on_the_users_samples(done: Done):
    exported, written = done.report.proofs
    assert "model.pt" in exported.reference
    assert [(item.package, item.reference) for item in exported.accuracy] == [(1.0, 1.0)]
    assert exported.accuracy[0].samples == 70
    assert exported.max_abs_error < 1e-5 < written.max_abs_error
    assert written.reference == "vectors recorded from the original model"


def test_speedups_are_those_of_bench(done: Done):
    fastest, eager, exported = done.benched.results
    found = {speedup.over: speedup for speedup in done.report.speedups}
    assert list(found) == ["the original model", "the float32 package as exported"]
    for over, row in (("the original model", eager), (list(found)[1], exported)):
        ratio = fastest.ratios[row.contestant]
        one = found[over]
        assert (one.times, one.low, one.high) == (1 / ratio.value, 1 / ratio.high, 1 / ratio.low)
        assert (one.p50_ms, one.baseline_p50_ms) == (fastest.latency.p50_ms, row.latency.p50_ms)
    assert fastest.sizes == {"batch": 64}
    assert str(done.report.bench_command).startswith(f"moh-deploy bench {done.output} --size batch")


def test_example_is_of_the_samples_where_nothing_else_says_what_the_model_takes(
    done: Done, given: Given
):
    package = OnnxPackage.open(done.output)
    assert package.manifest.dims == {"batch": 2}
    samples = np.load(given.inputs)["x"]
    assert np.array_equal(package.vectors[0].inputs["x"], samples[:2])


@nightly
def test_winner_is_that_of_tune_within(
    done: Done, given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    prove_in_this_process(monkeypatch)
    moh_deploy.export(given.model, tmp_path / "float32", trust_pickle=True, input_specs=[SPEC])
    options = {"inputs": [given.inputs], "labels": given.labels, "within": WITHIN, "threads": 1}
    found = moh_deploy.tune_within(
        tmp_path / "float32",
        output=tmp_path / "tuned",
        measure=Meter(),
        runtime="onnxruntime",
        **options,
    )
    ours = done.report.search
    assert (found.runtime, found.precision) == (ours.runtime, ours.precision)
    assert [(row.way, row.ending) for row in found.tried] == [
        (row.way, row.ending) for row in ours.tried
    ]
    layers = [OnnxPackage.open(root).manifest.layers for root in (tmp_path / "tuned", done.output)]
    assert layers[0] == layers[1]


@nightly
def test_interrupted_search_goes_on_where_it_was(
    given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    output, work = tmp_path / "fast", tmp_path / "fast.work"
    with pytest.raises(KeyboardInterrupt):
        given.optimize(output, Meter(stops_at=INT8), monkeypatch)
    assert not output.exists()
    (kept,) = work.glob("search-*/search.json")
    assert json.loads(kept.read_text())["way"]["precision"] == "float32"

    def again(*_: object, **__: object) -> None:
        raise AssertionError("done again")

    for place, name in ((Contests, "first"), (export_module, "export"), (WithinTask, "made")):
        monkeypatch.setattr(place, name, again)
    monkeypatch.setattr(command, "verify", lambda root, **options: verify(root))
    report = given.optimize(output, meter := Meter(), monkeypatch)
    assert report.search.precision == "int8"
    assert meter.seen == [f"{FLOAT32} {INT8}"] * 2  # as it is, and tuned
    assert report.proofs[0].reference.endswith("model.pt")
    assert not work.exists()


@nightly
def test_too_few_samples_give_the_float32_package(
    given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    few = Given(given.model, tmp_path / "few.npz", tmp_path / "labels.npy")
    write_npz(few.inputs, {"x": np.load(given.inputs)["x"][:20]})
    np.save(few.labels, np.load(given.labels)[:20])
    report = few.optimize(tmp_path / "fast", Meter(), monkeypatch)
    assert OnnxPackage.open(tmp_path / "fast").manifest.precision == "float32"
    assert [item.verdict for item in report.proofs[0].accuracy] == ["cannot tell"]
    assert "20 samples are too few to tell" in report.to_markdown()


@nightly
@pytest.mark.parametrize("changed", ["model", "inputs", "within", "code"])
def test_stage_is_done_again_where_what_it_rests_on_has_changed(
    changed: str, given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for path in (given.model, given.inputs, given.labels):
        shutil.copy(path, tmp_path)
    mine = Given(*(tmp_path / path.name for path in (given.model, given.inputs, given.labels)))
    (code := tmp_path / "code").mkdir()
    (code / "helper.py").write_text("A = 1")
    options: dict[str, object] = {"code_dirs": [code], "input_specs": [SPEC]}
    with pytest.raises(KeyboardInterrupt):
        mine.optimize(tmp_path / "fast", Meter(stops_at=INT8), monkeypatch, **options)
    if changed == "model":
        model = small_moh.build().eval()
        torch.nn.init.zeros_(model.out.bias)
        torch.save(model, mine.model)
    elif changed == "inputs":
        arrays = np.load(mine.inputs)["x"]
        write_npz(mine.inputs, {"x": arrays[::-1].copy()})
        np.save(mine.labels, np.load(mine.labels)[::-1])
    elif changed == "within":
        options["within"] = "top-1 >= 0.7 * reference"
    else:
        (code / "helper.py").write_text("A = 2")
    exported, first = [], []
    export, contest = export_module.export, Contests.first
    monkeypatch.setattr(
        export_module, "export", lambda *a, **k: exported.append(1) or export(*a, **k)
    )
    monkeypatch.setattr(Contests, "first", lambda *a, **k: first.append(1) or contest(*a, **k))
    mine.optimize(tmp_path / "fast", Meter(), monkeypatch, **options)
    assert bool(exported) == (changed in ("model", "code"))
    assert first


def test_package_that_cannot_be_proven_is_not_written(
    given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_package(tmp_path / "fast")
    before = (tmp_path / "fast" / "manifest.json").read_bytes()
    base = write_package(tmp_path / "base")
    monkeypatch.setattr(export_module, "export", lambda model, folder, **_: write_package(folder))
    monkeypatch.setattr(command._Job, "_original", lambda job: base.root)
    monkeypatch.setattr(command, "verify", lambda *_, **__: failing(base))
    with pytest.raises(ValidationError, match="not equal to the reference"):
        moh_deploy.optimize(
            given.model, tmp_path / "fast", within="parity", trust_pickle=True, min_time=0.0
        )
    assert (tmp_path / "fast" / "manifest.json").read_bytes() == before


def failing(package: OnnxPackage) -> ParityReport:
    """Return the comparison of a package with another."""
    other = package.root.with_name("other")
    write_package(other, scale=1.5)
    return verify(other, against=[package.root])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"within": "fast enough"}, ConfigError, "is no condition"),
        ({"within": "top-1 >= 0.9 * reference"}, ConfigError, "needs labels"),
        ({"labels": "labels.npy"}, ConfigError, "no condition is about a metric"),
        ({"threads": 0}, ConfigError, "threads is 0"),
        ({"min_time": -1.0}, ConfigError, "min_time is -1"),
        ({"inputs": ["none.npz"]}, ConfigError, "none.npz does not exist"),
        ({"calibration": ["none.npz"]}, ConfigError, "none.npz does not exist"),
        ({"example": "none.npz"}, ConfigError, "none.npz does not exist"),
        (
            {"within": WITHIN, "labels": "none.npy"},
            ConfigError,
            "none.npy does not exist",
        ),
        ({"config": "none.yaml"}, ConfigError, "none.yaml"),
        ({"overrides": ["model.factory=os:getcwd"]}, ConfigError, "trust"),
        ({"model": "none.pt"}, CheckpointError, "none.pt does not exist"),
        ({"model": "package"}, ConfigError, "is a package already"),
        ({"output": "notes"}, PackageError, "will not be overwritten"),
        ({"output": "busy"}, PackageError, "holds 'mine.txt'"),
    ],
)
def test_wrong_option_is_refused_before_pytorch_is_imported(
    options: dict[str, object],
    error: type[MoHDeployError],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    for name in ("torch", "moh_deploy.api.export"):
        monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "model.pt").touch()
    write_package(tmp_path / "package")
    for folder in ("notes", "busy.work"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.txt").touch()
    before = sorted(tmp_path.rglob("*"))
    given = {"model": "model.pt", "output": "fast", "within": "parity", **options}
    with pytest.raises(error, match=message):
        moh_deploy.optimize(**given)
    assert sorted(tmp_path.rglob("*")) == before


def test_option_that_is_none_is_refused(given: Given, tmp_path: Path):
    with pytest.raises(TypeError, match="unexpected keyword argument 'precison'"):
        moh_deploy.optimize(given.model, tmp_path / "fast", within="parity", precison="int8")


HANGING = """
import pathlib, time
def score(outputs, labels):
    here = pathlib.Path(__file__).parent
    (here / "began").touch()
    while not (here / "go").exists():
        time.sleep(0.1)
    (logits,) = outputs.values()
    return (logits.argmax(-1) == labels).mean(-1)
"""


@nightly
def test_command_that_is_interrupted_names_its_folder_and_goes_on_there(
    given: Given, tmp_path: Path
):
    (code := tmp_path / "code").mkdir()
    (code / "mine.py").write_text(HANGING)
    shutil.copy(small_moh.__file__, code)
    place = tmp_path / "place"
    command = [sys.executable, "-m", "moh_deploy", "optimize", given.model, "-o", place / "fast"]
    command += ["--trust-pickle", "--inputs", given.inputs, "--labels", given.labels, "--json"]
    command += ["--within", "mine:score >= 0.8 * reference", "--code-dir", code]
    command += ["--min-time", "0ms", "--threads", "1", "--runtime", "onnxruntime"]
    root = str(Path(__file__).parents[2])
    environment = {**child_environment(), "PYTHONPATH": root, "COLUMNS": "400"}

    def started() -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        words = list(map(str, command))
        return subprocess.Popen(
            words, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True
        )

    with started() as process:
        while not (code / "began").exists():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert f"{place / 'fast.work'} keeps what is done" in err
    assert [path.name for path in place.iterdir()] == ["fast.work"]
    (exported,) = (place / "fast.work").glob("float32-*")
    made = exported.stat().st_ino
    (code / "go").touch()
    with started() as process:
        while not list((place / "fast.work").glob("search-*/proof.json")):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        assert exported.stat().st_ino == made
        out, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    assert json.loads(out)["output"] == str(place / "fast")
    assert sorted(path.name for path in place.iterdir()) == ["fast", "fast.html"]
    assert "FASTEST GOOD PACKAGE" in (place / "fast.html").read_text()
