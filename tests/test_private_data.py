"""Files that are handed on hold no absolute path, no line of the author's source, no user or host.

An author's directory has marks in it: in the code, the environment and the names of folders. All
that moh-deploy writes there is searched for them, byte by byte, also within zip archives.
"""

import importlib.util
import inspect
import os
import platform
import shutil
import socket
import sys
import sysconfig
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

import moh_deploy
from moh_deploy.derive.forms import with_top_k, write_caches_in_place
from moh_deploy.package import OnnxPackage
from moh_deploy.report.report import Report
from moh_deploy.runtime.tensorrt.engine_graph import read_graph
from moh_deploy.system.bounded_json import to_json_text
from moh_deploy.system.progress import SilentProgress
from tests import small_moh
from tests.cli.run_cli import Cli
from tests.exporting import INPUT, prove_in_this_process
from tests.nightly import nightly
from tests.serving.http.running import running
from tests.text.model_directories import write_plain_torch
from tests.text.tokenizer_files import write_tokenizer

pytestmark = nightly

USER, HOST = "mark-of-the-user", "mark-of-the-host"
# Shorter lines, such as `return x`, say nothing of whose they are.
SHORTEST_LINE = 24
REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def author(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working directory of an author, with a model in each form and its package."""
    folder = tmp_path_factory.mktemp("mark-of-the-folder")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("USER", USER), ("LOGNAME", USER), ("HOSTNAME", HOST)):
            patch.setenv(name, value)
        patch.setattr(socket, "gethostname", lambda: HOST)
        patch.setattr(platform, "node", lambda: HOST)
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        prove_in_this_process(patch)
        (folder / "author.py").write_text(inspect.getsource(small_moh))
        model = author_module().build().eval()
        torch.save(model, "model.pt")
        moh_deploy.export(model, "package", input_specs=[INPUT], output_names=["y"])
        x = np.random.default_rng(0).standard_normal((400, 5, 8)).astype("float32")
        np.savez("x.npz", x=x)
        yield folder
    sys.modules.pop("author", None)


@cache
def author_module():
    spec = importlib.util.spec_from_file_location("author", "author.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["author"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def cli(author: Path, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys)


def private_words(folder: Path) -> set[bytes]:
    """Return what must not be in a file: paths of this machine, names, lines of source."""
    places = {folder, REPOSITORY, Path(sys.prefix), Path(sysconfig.get_paths()["purelib"])}
    places |= {Path(os.path.expanduser("~")), Path(torch.__file__).parent}
    words = {str(place) for place in places if len(place.parts) > 2 or place == Path.home()}
    words |= {USER, HOST, folder.name, 'File "'}
    sources = [Path("author.py"), *REPOSITORY.glob("tests/text/plain_torch/*.py")]
    lines = {line.strip() for file in sources for line in file.read_text().splitlines()}
    return {word.encode() for word in words | {item for item in lines if len(item) > SHORTEST_LINE}}


def contents(path: Path) -> Iterator[tuple[str, bytes]]:
    yield path.name, path.read_bytes()
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                yield f"{path.name}!{name}", archive.read(name)


def assert_private(*written: Path) -> None:
    files = [file for item in written for file in ([item] if item.is_file() else item.rglob("*"))]
    files = [file for file in files if file.is_file()]
    assert files
    words = private_words(Path.cwd())
    found = [
        f"{file}: {name} has {word.decode()}"
        for file in files
        for name, content in contents(file)
        for word in words
        if word in content
    ]
    assert not found, "\n".join(found)


def exported_pt2() -> None:
    batch, seq = torch.export.Dim("batch"), torch.export.Dim("seq")
    program = torch.export.export(
        author_module().build().eval(), (torch.ones(2, 5, 8),), dynamic_shapes=({0: batch, 1: seq},)
    )
    torch.export.save(program, "model.pt2")
    moh_deploy.export("model.pt2", "out")


def exported_onnx() -> None:
    torch.onnx.export(
        author_module().build().eval(),
        (torch.ones(2, 5, 8),),
        "plain.onnx",
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch"), 1: torch.export.Dim("seq")},),
        external_data=False,
        verbose=False,
    )
    moh_deploy.export("plain.onnx", "out")


def exported_weights() -> None:
    torch.save({"model": author_module().build().state_dict()}, "weights.pt")
    moh_deploy.export(
        "weights.pt", "out", factory="author:build", code_dirs=["."], input_specs=[INPUT]
    )


@cache
def decoder(cache: str) -> Path:
    if not Path("llm").exists():
        write_plain_torch(Path("llm"))
        write_tokenizer(Path("llm"))
    output = Path(f"decoder-{cache}")
    moh_deploy.export("llm", output, task="text-generation", trust_code=True, cache=cache)
    return output


def lowered_for_an_engine() -> None:
    graph = read_graph(OnnxPackage.open("package"), (), no_plugins=None)
    ir.save(graph.lowered({}, is_portable=False).model, "out")


ARTEFACTS: dict[str, Callable[[], object]] = {
    "module": lambda: shutil.copytree("package", "out"),
    "engine": lowered_for_an_engine,
    "pt2": exported_pt2,
    "onnx": exported_onnx,
    "weights": exported_weights,
    "directory": lambda: shutil.copytree(decoder("concatenated"), "out"),
    "in-place": lambda: write_caches_in_place(
        OnnxPackage.open(decoder("concatenated")), Path("out"), SilentProgress()
    ),
    "genai": lambda: moh_deploy.bundle_for_genai(decoder("in-place"), "out"),
    **{
        precision: lambda to=precision: moh_deploy.precision("package", to=to, output="out")
        for precision in ("float16", "bfloat16", "int8", "int4")
    },
    "tune": lambda: moh_deploy.tune(shutil.copytree("package", "out"), min_time=0.01),
    "prune": lambda: moh_deploy.prune("package", "out", keep=3),
    "top_k": lambda: with_top_k(
        Path("package"), Path("out"), top_k=None, progress=SilentProgress()
    ),
    "inline": lambda: moh_deploy.inline("package", output="out"),
    "profile": lambda: moh_deploy.profile("package", "out", inputs=["x.npz"], window=32),
    "triton": lambda: moh_deploy.bundle("package", "out", guard="default", shadow="package"),
    "run": lambda: moh_deploy.run("package", inputs="x.npz", outputs="out"),
}


REPORTS = ("--html", "r.html", "--markdown", "r.md", "--junit", "r.xml")
GATED = ("--baseline-file", "r.json", "--update-baseline")
OWN = ("--trust-pickle", "--code-dir", ".")
COMMANDS: dict[str, tuple[str, ...]] = {
    "verify": ("verify", "package", "--against", "model.pt", *OWN, *REPORTS, *GATED),
    "bench": (
        *("bench", "package", "--baseline", "eager", "--checkpoint", "model.pt", *OWN),
        *("--min-time", "10ms", *REPORTS, *GATED),
    ),
    "export": ("export", "model.pt", "-o", "out", *OWN, "--input", INPUT, "--verbose"),
    "inspect": ("inspect", "package"),
    "probe": ("probe", "package"),
    "bisect": ("bisect", "half"),
    "compare": (
        *("compare", "--plan", "plan.yaml", "--trust-code", "--trust-pickle"),
        *("--keep-scores", "scores", *REPORTS[:4]),
    ),
    "drill": ("drill", "package", "--in-process", "--seconds", "500ms"),
}
PLAN = """
goal: Tell nothing of the author
reference: a
arms:
  a: {path: package}
  b: {made: {top_k: all}}
  c: {checkpoint: {file: model.pt, trust_pickle: true, code_dirs: [.]}}
inputs: [x.npz]
labels: labels.npy
quality: {metric: "author_metric:score", better: higher, may_lose: 1.0}
code_dirs: [.]
latency: {at_least: 0.1}
seconds: 0.1
"""
METRIC = """
def score(outputs, labels):
    return outputs["y"].mean(axis=(1, 2)) + labels
"""


@pytest.mark.parametrize("kind", ARTEFACTS)
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
def test_artefact_is_private(author: Path, kind: str):
    written = ARTEFACTS[kind]()
    if isinstance(written, Report):
        Path("out.json").write_text(to_json_text(written.to_json()))
        assert_private(Path("out.json"))
    assert_private(Path("out"))
    Path("out").rename(f"done-{kind}")


@pytest.mark.parametrize("command", COMMANDS)
def test_report_is_private(author: Path, cli: Cli, command: str):
    Path("plan.yaml").write_text(PLAN)
    Path("author_metric.py").write_text(METRIC)
    np.save("labels.npy", np.zeros(400, np.float32))
    if command == "bisect":
        moh_deploy.precision("package", to="float16", output="half")
    ended = cli(*COMMANDS[command], "--json")
    assert ended.exit_code in (0, 1), ended.err
    Path("shown.txt").write_text(ended.out)  # stderr is for the user of this machine
    left = [Path(name) for name in ("r.html", "r.md", "r.xml", "r.json", "scores", "out")]
    written = [item for item in left if item.exists()]
    assert_private(Path("shown.txt"), *written)
    for item in written:
        item.rename(f"done-{command}-{item.name}")


def test_answers_of_a_server_are_private(author: Path):
    options = ("--guard", "default", "--audit-log", "audit.jsonl")
    with (
        running(author / "package", Path("stderr.txt"), *options) as server,
        server.client() as client,
    ):
        places = ("metrics", "v2", "v2/models/m", "v2/models/m/config", "nothing")
        answers = [client.get(f"{server.url}/{place}").content for place in places]
        inputs = [{"name": "x", "datatype": "FP32", "shape": [1, 5, 8], "data": [0.5] * 40}]
        for content in (inputs, [], [{**inputs[0], "data": [1]}]):
            sent = client.post(f"{server.url}/v2/models/m/infer", json={"inputs": content})
            answers.append(sent.content)
    assert b"moh_" in answers[0]
    Path("answers.txt").write_bytes(b"\n".join(answers))
    assert_private(Path("answers.txt"), Path("audit.jsonl"))
