import json
from pathlib import Path

import pytest

from tests.benchmarks.conftest import LoadBenchmark
from tests.handmade_package import write_package
from tests.nightly import nightly


@nightly
def test_server_is_measured_beside_a_loop_and_answers_are_compared(
    tmp_path: Path, load_benchmark: LoadBenchmark, capsys: pytest.CaptureFixture[str]
):
    root = write_package(tmp_path / "package").root
    arguments = ["--package", str(root), "--clients", "1", "2", "--requests", "20", "--json"]
    assert load_benchmark("serving_cpu").main(arguments) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["way"] for row in rows] == [
        "the package in a loop",
        "serve, 1 client",
        "serve, 2 clients",
    ]
    assert all(row["per_second"] > 0 and row["p99_ms"] >= row["p50_ms"] > 0 for row in rows)
    assert [row["wrong"] for row in rows] == [0, 0, 0]
