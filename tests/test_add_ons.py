"""What others register by entry points, and what happens where that cannot be loaded."""

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import moh_deploy
from moh_deploy import add_ons
from moh_deploy.errors import BackendError
from moh_deploy.machine.machine import probe_add_ons
from moh_deploy.runtime.models import OnnxFile, PackageDir
from moh_deploy.runtime.open_runner import find_model
from tests.cli.run_cli import REPOSITORY, Cli, run_python
from tests.handmade_package import write_package
from tests.nightly import nightly
from tests.toy_add_on import add_ons_are_read_again, install, own_entry_points, write_metadata

__all__ = ["add_ons_are_read_again"]
pytestmark = pytest.mark.usefixtures("add_ons_are_read_again")

ADD_ON = [
    f"moh_deploy/{path}"
    for path in (
        *("decision", "serving", "runtime/tensorrt", "machine/tensorrt.py", "derive/engine.py"),
        *("cli/build.py", "api/build.py", "api/polygraphy.py"),
    )
]
CORE_TESTS = [
    "tests/api/test_bench.py",
    "tests/api/test_export.py",
    "tests/api/test_run.py",
    "tests/api/test_verify.py",
    "tests/cli/test_commands.py",
    "tests/runtime/test_made_up_runtime.py",
]
BROKEN = {
    "commands": {"greet": "toy:MISSING", "wave": "toy:toy"},
    "functions": {"toy": "no_such_module:toy"},
    "runtimes": {"toy": "toy:MISSING", "other": "toy:careless_probe"},
    "model_kinds": {"toy": "toy:MISSING"},
}
WHY = "the add-on toy is broken: its {name} of moh_deploy.{group} fails: "


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys)


def test_command_is_listed_before_it_is_imported(cli: Cli, tmp_path: Path, monkeypatch):
    install(tmp_path, monkeypatch)
    assert "\nToys:\n  greet      Greet the world.\n" in cli("--help").out
    assert "toy_command" not in sys.modules
    assert cli("greet").out == "hello\n"
    assert "Did you mean 'greet'?" in cli("gret").err


def test_function_is_a_public_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    install(tmp_path, monkeypatch)
    assert moh_deploy.toy() == "a toy"
    assert "toy" in dir(moh_deploy)


def test_command_of_the_core_is_never_replaced(cli: Cli, tmp_path: Path, monkeypatch):
    install(tmp_path, monkeypatch, {"commands": {"verify": "toy:GREET"}})
    assert "Toys" not in cli("--help").out
    assert "Compare the package or engine DIR" in cli("verify", "--help").out


def test_first_installation_on_the_path_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    install(tmp_path / "second", monkeypatch, {"functions": {"old": "toy:toy"}})
    install(tmp_path / "first", monkeypatch, {"functions": {"new": "toy:toy"}})
    install(tmp_path / "other", monkeypatch, {"functions": {"other": "toy:toy"}}, name="other")
    assert {"new", "other", "build"} <= set(add_ons.entry_points("functions"))
    assert "old" not in add_ons.entry_points("functions")


@pytest.fixture
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked of another process is answered in this one."""
    monkeypatch.setattr("moh_deploy.machine.machine.ask", lambda function: function())


@pytest.mark.usefixtures("no_process")
def test_doctor_asks_the_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    install(tmp_path, monkeypatch, name="moh_deploy")  # in the place of our own, which take seconds
    (toy,), broken = probe_add_ons(None)
    assert list(toy.found()) == [("toy", "toy 1.0")]
    assert broken == ()


@nightly
def test_doctor_reports_the_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    install(tmp_path, monkeypatch)
    ended = run_python("-m", "moh_deploy", "doctor", "--json")
    content = json.loads(ended.out)
    assert content["machine"]["toy"] == "toy 1.0"
    assert {"plugin", "tensorrt"} <= set(content["machine"])
    found = {ability["name"]: ability for ability in content["abilities"]}
    assert found["run toys"]["how"].startswith("toy 1.0 on Linux")
    assert found["use all add-ons"]["can"]


def test_broken_add_on_is_named_by_its_command_alone(cli: Cli, tmp_path: Path, monkeypatch):
    install(tmp_path, monkeypatch, BROKEN)
    assert "\nBroken:\n  greet      the add-on toy is broken" in cli("--help").out
    failed = cli("greet")
    assert failed.exit_code == 6
    assert f"error: {WHY.format(name='greet', group='commands')}AttributeError: " in failed.err
    assert "hint: Install toy again, or remove it." in failed.err
    assert "expected AddedCommand" in cli("wave").err
    assert cli("inspect", write_package(tmp_path / "package").root).exit_code == 0


@pytest.mark.usefixtures("no_process")
def test_broken_add_on_is_named_by_doctor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    install(tmp_path, monkeypatch, BROKEN, name="moh_deploy")
    found, broken = probe_add_ons(None)
    assert found == ()
    assert [reason.why.split(":")[1].split(" of ")[1] for reason in broken] == [
        f"moh_deploy.{group} fails"
        for group in ("runtimes", "runtimes", "commands", "commands", "functions", "model_kinds")
    ]


def test_broken_model_kind_is_named_where_a_directory_may_be_its(tmp_path: Path, monkeypatch):
    install(tmp_path, monkeypatch, BROKEN)
    (tmp_path / "other").mkdir()
    with pytest.raises(BackendError, match=WHY.format(name="toy", group="model_kinds")):
        find_model(tmp_path / "other")


def test_verifier_judges_directories_with_its_file_and_is_named_if_broken(
    cli: Cli, tmp_path: Path, monkeypatch
):
    install(tmp_path, monkeypatch, {"verifiers": {"greet": "greetings:VERIFIER"}})
    (tmp_path / "other").mkdir()
    (tmp_path / "greeting").mkdir()
    (tmp_path / "greeting" / "greet.json").write_text("{}")
    text = "from moh_deploy.add_ons import AddedVerifier\n"
    text += "VERIFIER = AddedVerifier('greet.json', 'judge_of_greetings')\n"
    (tmp_path / "greetings.py").write_text(text)
    broken = cli("verify", tmp_path / "greeting")
    assert broken.exit_code == 6
    assert WHY.format(name="greet", group="verifiers") in broken.err
    text = (
        "def is_one(path): return True\ndef verify_bundle(path, *_): print('judged', path.name)\n"
    )
    (tmp_path / "judge_of_greetings.py").write_text(text)
    importlib.invalidate_caches()
    assert cli("verify", tmp_path / "greeting").out == "judged greeting\n"
    assert "judged" not in cli("verify", tmp_path / "other").out


def test_packages_are_found_without_loading_add_ons(tmp_path: Path, monkeypatch):
    package = write_package(tmp_path / "package").root
    monkeypatch.setattr(add_ons, "import_module", pytest.fail)
    assert find_model(package) == PackageDir(package)
    assert find_model(package / "model.onnx") == OnnxFile(package / "model.onnx")


def test_files_that_were_not_installed_say_so(cli: Cli, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    add_ons._all.cache_clear()
    failed = cli("build")
    assert failed.exit_code == 2
    assert "No such command 'build'." in failed.err
    assert "runs from files that were not installed" in failed.err
    assert "pip install -e ." in failed.err
    with pytest.raises(AttributeError, match=r"no attribute 'build': moh-deploy runs from files"):
        _ = moh_deploy.build
    with pytest.raises(BackendError, match="were not installed"):
        find_model(tmp_path)


ONLY_FROM_THE_PATH = """
import sys
sys.meta_path = [f for f in sys.meta_path if not f.__module__.startswith("__editable__")]
"""


@nightly
def test_core_works_where_the_folders_of_add_ons_are_gone(tmp_path: Path, monkeypatch):
    """Its entry points stay, as in a broken installation."""
    for folder in ("moh_deploy", "tests", "examples", "docs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / folder, tmp_path / folder, ignore=ignored)
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    write_metadata(tmp_path, "moh_deploy", own_entry_points())
    # An editable installation finds modules that a package lacks in the folder it was made of.
    (tmp_path / "sitecustomize.py").write_text(ONLY_FROM_THE_PATH)
    for path in ADD_ON:
        target = tmp_path / path
        shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *CORE_TESTS],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout
    for name in ("build", "compare", "serve"):
        command = [sys.executable, "-m", "moh_deploy", name]
        ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert ended.returncode == 6
        assert f"the add-on moh_deploy is broken: its {name} of moh_deploy.c" in ended.stderr
