"""The fastest that is still good: over precisions and runtimes, with planted times."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import moh_deploy
from moh_deploy.api import tune_within as command
from moh_deploy.config.options import ExportOptions
from moh_deploy.errors import BackendError, ConfigError, ValidationError
from moh_deploy.frontend.export_package import export_package
from moh_deploy.graph.choose_layers import write_choices
from moh_deploy.package import OnnxPackage
from moh_deploy.perf.tune import contests
from moh_deploy.perf.tune.contests import CONTEST, Differs
from moh_deploy.perf.tune.quality import Quality, QualityCheck
from moh_deploy.perf.tune.report import SearchReport, Tried
from moh_deploy.runtime.openvino import extension
from moh_deploy.system.isolate import child_environment
from moh_deploy.system.npz import write_npz
from moh_deploy.validate.accuracy.metric_parity import ChangedSample
from tests import small_moh
from tests.kernel_library import required_library

FLOAT32, INT4, INT8, FLOAT16, BFLOAT16 = (
    f"{precision} in ONNX Runtime"
    for precision in ("float32", "int4", "int8", "float16", "bfloat16")
)
SLOW_MS = 99.0


@dataclass
class Meter:
    """Says what it was told of each candidate, and that all ways of a layer take as long.

    Attributes:
        ms: Candidate to milliseconds, or to one for each round; others are slow.
        seen: What was measured, in order.
    """

    ms: Mapping[str, float | tuple[float, ...]]
    seen: list[tuple[str, ...]] = field(default_factory=list)

    def __call__(
        self, what: str, candidates: Mapping[str, Callable[[], object]]
    ) -> dict[str, tuple[float, ...]]:
        self.seen.append((what, *candidates))
        for call in candidates.values():
            call()
        told = {name: self.ms.get(name, SLOW_MS) if what == CONTEST else 1.0 for name in candidates}
        return {k: v if isinstance(v, tuple) else (v,) * 7 for k, v in told.items()}

    @property
    def tuned(self) -> int:
        """How many packages had their layers measured."""
        return sum(what not in (CONTEST, "whole model") for what, *_ in self.seen)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> OnnxPackage:
    output = tmp_path_factory.mktemp("tune_within") / "package"
    spec = "x:[batch=2,7,8]:float32"
    export_package(ExportOptions(small_moh.build(), output, input_specs=(spec,)))
    return OnnxPackage.open(output)


@pytest.fixture(scope="module")
def samples(package: OnnxPackage, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Inputs, and the classes that the float32 package sees in them."""
    folder = tmp_path_factory.mktemp("samples")
    rng = np.random.default_rng(0)
    inputs, outputs = folder / "inputs.npz", folder / "outputs.npz"
    write_npz(inputs, {"x": rng.standard_normal((120, 7, 8)).astype(np.float32)})
    moh_deploy.run(package.root, inputs=inputs, outputs=outputs)
    (name,) = (output.name for output in package.manifest.outputs)
    np.save(folder / "labels.npy", np.load(outputs)[name].argmax(axis=-1))
    return {"inputs": inputs, "labels": folder / "labels.npy"}


@pytest.fixture(autouse=True)
def _only_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO may be there or not: here it is not."""
    required_library()
    there = contests.runtime_name_of

    def name_of(runtime: str) -> str:
        if runtime == "openvino":
            raise BackendError("OpenVINO cannot be loaded.", hint="Install it.")
        return there(runtime)  # type: ignore[arg-type]

    monkeypatch.setattr(contests, "runtime_name_of", name_of)


@pytest.fixture(scope="module")
def made(package: OnnxPackage, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The packages in other precisions, which are the same for every search."""
    folder = tmp_path_factory.mktemp("made")
    for to in command.LOWER_PRECISIONS:
        moh_deploy.precision(package.root, to=to, output=folder / to)
    return {to: folder / to for to in command.LOWER_PRECISIONS}


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("calibration") / "mine.npz"
    write_npz(path, {"x": np.random.default_rng(5).standard_normal((64, 7, 8)).astype(np.float32)})
    return path


@pytest.fixture(autouse=True)
def asked(made: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What precisions a search asks for; an entry of `made` may be an error in their place."""
    names: list[str] = []

    def precision(
        package: OnnxPackage, to: str, *where: object, calibration: Sequence[object]
    ) -> SimpleNamespace:
        names.append(f"static {to}" if calibration else to)
        return SimpleNamespace(package=made[names[-1]])

    monkeypatch.setattr(command, "write_precision", precision)
    return names


def searched(
    package: OnnxPackage, output: Path | None, meter: Meter, **options: object
) -> SearchReport:
    given = {"within": "flips <= 5 %", **options}
    if output is None:
        given["dry_run"] = True
    return moh_deploy.tune_within(package.root, output=output, measure=meter, **given)


def of(report: SearchReport, name: str) -> Tried:
    (found,) = (item for item in report.tried if item.way.name == name)
    return found


def test_fastest_that_is_good_is_written_with_what_it_runs_in(
    package: OnnxPackage, samples: dict[str, Path], tmp_path: Path
):
    meter = Meter({FLOAT32: 10.0, INT8: 4.0, FLOAT16: 9.0})
    report = searched(
        package,
        tmp_path / "fast",
        meter,
        within=["top-1 >= 0.8 * reference", "flips <= 50 %"],
        inputs=[samples["inputs"]],
        labels=samples["labels"],
    )
    assert (report.precision, report.runtime) == ("int8", "onnxruntime")
    written = OnnxPackage.open(tmp_path / "fast").manifest
    assert (written.precision, written.runtime) == ("int8", "onnxruntime")
    assert written.tuning.within == ("top-1 >= 0.8 * reference", "flips <= 50 %")
    assert moh_deploy.verify(tmp_path / "fast").equal
    quality = of(report, INT8).quality
    assert (quality.samples, quality.flips.of) == (120, 120 * 7)
    assert quality.accuracy[0].package < quality.accuracy[0].reference == 1.0
    # What was beaten says by whom, and by how much.
    beaten = of(report, FLOAT32)
    assert (beaten.ending, beaten.timed and beaten.timed.rival) == ("too slow", INT8)
    assert "2.500x the time of int8 in ONNX Runtime (95 %: 2.500x to 2.500x)" in str(beaten.reason)


def test_static_scales_are_tried_where_inputs_are_given_for_them(
    package: OnnxPackage,
    made: dict[str, Path],
    asked: list[str],
    calibration: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    static = moh_deploy.precision(
        package.root, to="int8", scales="static", inputs=[calibration], output=tmp_path / "static"
    )
    monkeypatch.setitem(made, "static int8", static.package)
    given = {"within": "flips <= 100 %", "runtime": "onnxruntime"}
    meter = Meter({FLOAT32: 10.0, INT8: 6.0, "static int8 in ONNX Runtime": 4.0})
    report = searched(package, tmp_path / "fast", meter, calibration=[calibration], **given)
    assert asked == ["static int8", *command.LOWER_PRECISIONS]
    assert report.precision == "static int8"
    written = OnnxPackage.open(tmp_path / "fast").manifest
    assert (written.precision, written.runtime) == ("int8", "onnxruntime")
    assert len(written.activation_ranges) == 2
    assert moh_deploy.verify(tmp_path / "fast", against=[package.root]).equal
    # Without the inputs nothing is made of them, and they may not judge as well.
    assert searched(package, None, Meter({}), **given).tried[-1].way.precision != "static int8"
    assert asked.count("static int8") == 1
    with pytest.raises(ConfigError, match="holds a sample of"):
        searched(package, None, Meter({}), calibration=[calibration], inputs=[calibration], **given)


def test_what_is_slower_here_is_not_chosen_and_nothing_is_left_out_of_the_table(
    package: OnnxPackage, tmp_path: Path
):
    meter = Meter({FLOAT32: 10.0, INT8: 11.0, FLOAT16: 12.0})
    report = searched(package, tmp_path / "fast", meter)
    assert OnnxPackage.open(tmp_path / "fast").manifest.precision == "float32"
    endings = {item.way.name: item.ending for item in report.tried}
    assert endings == {
        FLOAT32: "chosen",
        INT8: "too slow",
        FLOAT16: "too slow",
        INT4: "too slow",
        BFLOAT16: "could not run",  # which is emulated on this runtime, and not timed
        "float32 in OpenVINO": "could not run",
        "float32 in ONNX Runtime (CUDA)": "could not run",
    }
    assert "no products of bfloat16" in str(of(report, BFLOAT16).reason)
    assert of(report, "float32 in OpenVINO").reason == "OpenVINO cannot be loaded. Install it."
    text = report.to_markdown()
    assert all(name in text for name in endings)
    assert "1.100x the time of float32 in ONNX Runtime" in text


@pytest.mark.nightly
def test_what_noise_alone_makes_faster_is_not_chosen(package: OnnxPackage):
    rounds = (5.0, 8.0, 9.0, 9.9, 11.0, 12.0, 9.0)
    report = searched(package, None, Meter({FLOAT32: 10.0, INT8: rounds, FLOAT16: 20.0}))
    assert report.precision == "float32"
    assert str(of(report, INT8).reason).endswith("not faster beyond noise")


@pytest.mark.parametrize(
    ("ms", "tuned"),  # one layer of each package
    [pytest.param(14.0, 3, marks=pytest.mark.nightly), (16.0, 1)],
)
def test_what_cannot_win_is_not_tuned(package: OnnxPackage, ms: float, tuned: int):
    meter = Meter({FLOAT32: 10.0, INT8: ms, FLOAT16: ms})
    report = searched(package, None, meter)
    assert meter.tuned == tuned
    assert str(of(report, INT8).reason).endswith("before its layers are tuned") == (tuned == 1)


@pytest.mark.nightly
def test_each_is_timed_against_the_fastest_so_far(package: OnnxPackage):
    meter = Meter({FLOAT32: 10.0, INT8: 4.0, FLOAT16: 3.9})
    report = searched(package, None, meter)
    assert report.precision == "float16"
    contests = {tuple(names) for what, *names in meter.seen if what == CONTEST}
    assert contests == {(FLOAT32, INT4), (FLOAT32, INT8), (INT8, FLOAT16)}
    assert str(of(report, INT8).reason).startswith("1.026x the time of float16 in ONNX Runtime")


def test_what_is_clearly_worse_on_few_samples_is_not_even_timed(
    package: OnnxPackage, samples: dict[str, Path]
):
    meter = Meter({FLOAT32: 10.0, INT8: 4.0, FLOAT16: 9.0})
    report = searched(
        package,
        None,
        meter,
        within="top-1 >= 0.999 * reference",
        inputs=[samples["inputs"]],
        labels=samples["labels"],
    )
    lost = of(report, INT8)
    assert lost.ending == "not good"
    assert "top-1 fell from 100.00 %" in str(lost.reason)
    assert (lost.timed, lost.quality and lost.quality.samples) == (None, 64)
    assert report.precision == "float16"
    assert not any(INT8 in names for names in meter.seen)


@pytest.mark.nightly
def test_what_few_samples_cannot_tell_is_judged_on_all_of_them_before_it_wins(
    package: OnnxPackage, samples: dict[str, Path], monkeypatch: pytest.MonkeyPatch
):
    few = QualityCheck.first_look
    blind = lambda check, *package: replace(few(check, *package), failed=())  # noqa: E731
    monkeypatch.setattr(QualityCheck, "first_look", blind)
    report = searched(
        package,
        None,
        Meter({FLOAT32: 10.0, INT8: 4.0, FLOAT16: 20.0}),
        within="top-1 >= 0.999 * reference",
        inputs=[samples["inputs"]],
        labels=samples["labels"],
    )
    lost = of(report, INT8)
    assert (report.precision, lost.ending) == ("float32", "not good")
    assert (lost.timed is not None, lost.quality and lost.quality.samples) == (True, 120)


@pytest.mark.nightly
def test_what_precision_refuses_is_not_good_and_is_asked_for_once(
    package: OnnxPackage, asked: list[str], monkeypatch: pytest.MonkeyPatch
):
    make = command.write_precision

    def refusing(package: OnnxPackage, to: str, *where: object, **options: object) -> object:
        found = make(package, to, *where, **options)  # type: ignore[arg-type]
        if to == "int8":
            raise ValidationError("output 'y' is off.", hint="Bisect it.")
        return found

    monkeypatch.setattr(command, "write_precision", refusing)
    report = searched(package, None, Meter({FLOAT32: 10.0, FLOAT16: 9.0}))
    refused = of(report, INT8)
    assert (refused.ending, refused.reason) == ("not good", "output 'y' is off. Bisect it.")
    assert sorted(asked) == sorted(command.LOWER_PRECISIONS)


@pytest.mark.nightly
def test_parity_is_judged_on_the_users_inputs(
    package: OnnxPackage, samples: dict[str, Path], monkeypatch: pytest.MonkeyPatch
):
    meter = Meter({FLOAT32: 10.0, INT8: 4.0, FLOAT16: 20.0})
    options = {"within": "parity", "inputs": [samples["inputs"]]}
    assert searched(package, None, meter, **options).precision == "int8"
    # A condition that a candidate does not meet on them is one that it does not meet.
    monkeypatch.setattr(Differs, "__call__", lambda *_: "output 'y' differs.")
    report = searched(package, None, meter, **options)
    assert (of(report, INT8).ending, of(report, INT8).reason) == ("not good", "output 'y' differs.")


@dataclass(frozen=True)
class Few:
    """Ten samples, too few for any interval."""

    package: OnnxPackage
    inputs: Path

    def searched(self, output: Path | None) -> SearchReport:
        return searched(
            self.package,
            output,
            Meter({}),
            within="top-1 >= 0.9 * reference",
            inputs=[self.inputs],
            labels=np.zeros((10, 7), np.int64),
        )


@pytest.fixture
def few(package: OnnxPackage, tmp_path: Path) -> Few:
    x = np.random.default_rng(1).standard_normal((10, 7, 8)).astype(np.float32)
    write_npz(tmp_path / "x.npz", {"x": x})
    return Few(package, tmp_path / "x.npz")


def test_too_few_samples_leave_float32_and_nothing_else_is_made(
    few: Few, tmp_path: Path, asked: list[str]
):
    report = few.searched(tmp_path / "fast")
    assert OnnxPackage.open(tmp_path / "fast").manifest.precision == "float32"
    assert not asked
    unknown = of(report, INT8)
    assert (unknown.ending, unknown.timed) == ("not good", None)
    assert "it cannot be judged: top-1 went from" in str(unknown.reason)
    assert "10 samples are too few to tell, at least 30 are needed" in str(unknown.reason)
    assert "samples are too few to judge other precisions: top-1" in report.to_markdown()


def test_sample_that_is_lost_among_few_is_refused(few: Few, monkeypatch: pytest.MonkeyPatch):
    def losing(check: QualityCheck, *package: object) -> Quality:
        found = judge(check, *package)
        (metric,) = found.accuracy
        lost = replace(metric, changed=(ChangedSample(0, "x.npz[0]", 1.0, 0.0),))
        return replace(found, accuracy=(lost,))

    judge = QualityCheck.judge
    monkeypatch.setattr(QualityCheck, "judge", losing)
    with pytest.raises(ValidationError, match="float32 package itself does not meet the condition"):
        few.searched(None)


def test_runtime_that_is_asked_for_has_to_be_there(package: OnnxPackage):
    with pytest.raises(BackendError, match="OpenVINO cannot be loaded"):
        searched(package, None, Meter({}), runtime="openvino")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"within": "fast enough"}, "is no condition"),
        ({"within": ["top-1 >= 0.9 * reference"]}, "needs labels"),
        ({"labels": "labels.npy"}, "no condition is about a metric"),
        ({"threads": 0}, "threads is 0"),
    ],
)
def test_what_does_not_fit_is_refused(
    package: OnnxPackage, options: dict[str, object], message: str
):
    with pytest.raises(ConfigError, match=message):
        searched(package, None, Meter({}), **options)


def test_output_is_named_unless_nothing_is_written(package: OnnxPackage, tmp_path: Path):
    with pytest.raises(ConfigError, match="no output to write"):
        moh_deploy.tune_within(package.root, within="parity")
    with pytest.raises(ConfigError, match="dry run writes nothing"):
        searched(package, tmp_path / "fast", Meter({}), dry_run=True)


def test_only_a_float32_package_is_the_start(made: dict[str, Path]):
    with pytest.raises(ConfigError, match="expected a package in float32"):
        searched(OnnxPackage.open(made["float16"]), None, Meter({}))


def test_package_tuned_for_a_runtime_that_is_not_there_says_so(
    package: OnnxPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    layers = package.manifest.layers
    write_choices(package, layers, tmp_path / "tuned", runtime="openvino")

    def missing() -> None:
        raise BackendError("OpenVINO cannot be loaded.", hint="Install it.")

    monkeypatch.setattr(extension, "import_openvino", missing)
    with pytest.raises(BackendError, match="tuned for openvino, which is not here") as refused:
        moh_deploy.verify(tmp_path / "tuned")
    assert "--runtime onnxruntime" in str(refused.value.hint)
    assert moh_deploy.verify(tmp_path / "tuned", runtime="onnxruntime").equal
    # In another precision it is another package, of which nothing was measured.
    lowered = moh_deploy.precision(tmp_path / "tuned", to="float16", output=tmp_path / "half")
    assert OnnxPackage.open(lowered.package).manifest.runtime is None


HANGING = """
import pathlib, time
def score(outputs, labels):
    pathlib.Path(__file__).with_name("began").touch()
    time.sleep(600)
"""


@pytest.mark.nightly
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_search_that_is_interrupted_leaves_nothing_behind(
    package: OnnxPackage, samples: dict[str, Path], tmp_path: Path, number: int
):
    (code := tmp_path / "code").mkdir()
    (code / "mine.py").write_text(HANGING)
    (place := tmp_path / "place").mkdir()
    (temporary := tmp_path / "temporary").mkdir()
    command = [sys.executable, "-m", "moh_deploy", "tune", package.root, "--output", place / "fast"]
    command += ["--within", "mine:score >= 0.9 * reference", "--inputs", samples["inputs"]]
    command += ["--labels", samples["labels"], "--code-dir", code, "--min-time", "0ms"]
    # A group of its own, as a shell gives to a command: Ctrl-C reaches all of it.
    process = subprocess.Popen(
        list(map(str, command)),
        env={**child_environment(), "TMPDIR": str(temporary)},
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    with process:
        while not (code / "began").exists():
            assert process.poll() is None
            time.sleep(0.05)
        assert list(place.iterdir())  # what is being made
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        assert process.wait(60) in (128 + number, -number)
    _wait_until_gone(process.pid)
    assert not list(place.iterdir())
    # ONNX Runtime leaves a file of its own there, as wherever a session was opened.
    assert not [path for path in temporary.iterdir() if path.name != ".ses"]


def _wait_until_gone(group: int) -> None:
    """Wait for the last process of a group: what ends is not waited for by who ends it."""
    for _ in range(600):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    raise AssertionError(f"somebody of group {group} is left")
