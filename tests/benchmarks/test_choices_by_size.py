import json
import sys
from pathlib import Path

import pytest

import moh_deploy
from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.kernel_use import choose_kernels
from moh_deploy.system.npz import write_npz
from tests.benchmarks.conftest import LoadBenchmark
from tests.handmade_package import vectors
from tests.nightly import sampled
from tests.two_layers import write_two_layers


def test_package_is_timed_beside_each_one_choice(
    tmp_path: Path,
    load_benchmark: LoadBenchmark,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    package = write_two_layers(tmp_path / "package")
    moh_deploy.tune(package.root, choose={"all[seq<=3]": "dense"})
    for seq in (2, 6):
        write_npz(tmp_path / f"{seq}.npz", vectors(seq=seq).inputs)
    inputs = [str(tmp_path / "2.npz"), str(tmp_path / "6.npz")]
    arguments = [str(package.root), "--inputs", *inputs, "--min-time", "0", "--json"]
    monkeypatch.setattr(sys, "argv", ["choices_by_size.py", *arguments])
    load_benchmark("choices_by_size").main()
    printed = capsys.readouterr()
    rows = json.loads(printed.out)
    assert [(row["sizes"], row["choice"]) for row in rows] == [
        (f"batch=2, seq={seq}", name) for seq in (2, 6) for name in ("package", "dense", "sparse")
    ]
    assert all(row["ms"] > 0 for row in rows)
    assert rows[0]["over_package"] == [1.0, 1.0, 1.0]
    assert "dense if seq<=3, else sparse" in " ".join(printed.err.split())


@sampled(2)
@pytest.mark.parametrize(("seq", "skips"), [(3, False), (6, True)])
def test_skipped_work_is_that_of_the_choice_at_the_sizes(
    tmp_path: Path, load_benchmark: LoadBenchmark, seq: int, skips: bool
):
    library = choose_kernels("auto")
    package = write_two_layers(tmp_path / "package")
    moh_deploy.tune(package.root, choose={"all[seq<=3]": "dense"})
    package = OnnxPackage.open(package.root)
    bench = load_benchmark("model_skipped")
    work = bench.skipped_work(package, vectors(seq=seq).inputs, library, repeats=1)
    for item in work:
        assert item.choice == ("sparse" if skips else "dense")
        fewer = item.attention.computed < item.attention.dense
        assert fewer == (skips and library.library is not None)
