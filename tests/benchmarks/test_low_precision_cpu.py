import json
from importlib.util import find_spec
from pathlib import Path

import pytest

import moh_deploy
from tests.benchmarks.conftest import LoadBenchmark
from tests.edge_case_package import write_edge_package
from tests.openvino_extension import install_extension


@pytest.mark.nightly
def test_flips_and_errors_stand_beside_times(
    load_benchmark: LoadBenchmark,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    install_extension(monkeypatch, tmp_path)
    package, low, plain = tmp_path / "package", tmp_path / "low", tmp_path / "plain.onnx"
    write_edge_package(package)
    moh_deploy.precision(package, to="bfloat16", output=low)
    moh_deploy.inline(package, output=plain)
    given = [str(package), str(low), "--plain", str(plain), "--repeats", "2", "--json"]
    assert load_benchmark("low_precision_cpu").main(given) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(Path(row["model"].partition(",")[0]).name, row["runtime"]) for row in rows] == [
        ("package", "onnxruntime"),
        ("package", "openvino"),
        ("low", "openvino"),
        ("plain.onnx", "openvino"),
        ("plain.onnx", "openvino"),
        *([("plain.onnx", "openvino")] if find_spec("nncf") else []),
        ("plain.onnx", "onnxruntime"),
        ("plain.onnx", "onnxruntime"),
    ]
    exact, here, lowered, *peers = rows
    assert exact["flips"] == here["flips"] == 0
    assert exact["tokens"] == lowered["tokens"] > 0
    assert max(exact["max_error"], here["max_error"]) < 1e-5 < lowered["max_error"]
    assert [peer["flips"] for peer in peers] == [None] * len(peers)
    assert all(row["ms"] > 0 for row in rows)
