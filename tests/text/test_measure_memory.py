"""An export holds the weights once: measured on processes of their own."""

from pathlib import Path

from tests.nightly import nightly
from tests.text.measure_memory import GIB, measure_export, write_large

# Python, PyTorch and ONNX Runtime in the command and in the process that proves the package.
BESIDE_WEIGHTS = 0.6 * GIB


@nightly
def test_export_holds_weights_once_and_a_tenth(tmp_path: Path):
    weights = write_large(tmp_path / "model", 1.4)
    peak = measure_export(tmp_path / "model", tmp_path / "package", weights)
    assert peak.private <= 1.1 * weights + BESIDE_WEIGHTS
