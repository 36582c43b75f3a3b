from dataclasses import replace

import pytest

from moh_deploy.perf.bench.baseline_figures import bench_figures
from tests.report.samples import bench_report


@pytest.mark.parametrize("fault", [None, "its outputs hold NaN"])
def test_baseline_that_is_wrong_is_no_measure(fault: str | None):
    first, dense = bench_report().results
    other = replace(dense, inputs="other.npz", fault="its outputs hold NaN")
    report = replace(bench_report(), results=(first, replace(dense, fault=fault), other))
    found = bench_figures(report, {})
    ratios = [item.group for item in found if item.name == "ratio"]
    expected = "recorded inputs at batch=4, threads=1, beside dense"
    assert ratios == ([expected] if fault is None else [])
    assert {item.name for item in found} >= {"p50_ms", "peak_memory_bytes", "computed_share"}
