"""Counts what tests are skipped for, and compares that with tests/expected_skips.yaml."""

import importlib
import importlib.util
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from packaging import version

from moh_deploy import native
from tests.kept_builds import BUILDS

BROWSERS = ("chromium", "google-chrome", "google-chrome-stable", "chromium-browser")
"""Programs that reports are opened in. The last may be a note that says to install another."""

EXPECTED = Path(__file__).parent / "expected_skips.yaml"


def _has_nvcc() -> bool:
    return bool(shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin"))


def _has_package(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _is_older(package: str, than: str) -> bool:
    return version.parse(importlib.import_module(package).__version__) < version.parse(than)


def _has_processor_flag(name: str) -> bool:
    info = Path("/proc/cpuinfo")
    return info.exists() and bool(re.search(rf"^flags.*\b{name}\b", info.read_text(), re.M))


def _has_cuda_headers() -> bool:
    homes = ("/usr/local/cuda", os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    return any(Path(home, "include", "cuda_runtime_api.h").is_file() for home in homes)


def has_onnxruntime_web() -> bool:
    """Tell whether Node.js is there, and finds onnxruntime-web by NODE_PATH."""
    if shutil.which("node") is None:
        return False
    code = "require.resolve('onnxruntime-web')"
    return subprocess.run(["node", "-e", code], capture_output=True).returncode == 0


MACHINE: dict[str, Callable[[], bool]] = {
    "as root": lambda: os.geteuid() == 0,
    "as user": lambda: os.geteuid() != 0,
    "with GPU": lambda: shutil.which("nvidia-smi") is not None,
    "with TensorRT": lambda: _has_package("tensorrt"),
    "without plugin": lambda: not (Path(native.__file__).parent / "libmoh_plugin.so").is_file(),
    "without nvcc": lambda: not _has_nvcc(),
    "without CUDA's headers": lambda: not _has_cuda_headers(),
    "without TensorRT's packages": lambda: not _has_package("tensorrt_rtx_libs"),
    "without transformers": lambda: not _has_package("transformers"),
    "without genai": lambda: not _has_package("onnxruntime_genai"),
    "without nbclient": lambda: not (_has_package("nbclient") and _has_package("ipykernel")),
    "without MkDocs": lambda: not _has_package("mkdocs"),
    "without tokenizers": lambda: not _has_package("tokenizers"),
    "with onnx before 1.23": lambda: _is_older("onnx", than="1.23"),
    "with ONNX Runtime before 1.25": lambda: _is_older("onnxruntime", than="1.25"),
    "without OpenVINO": lambda: not _has_package("openvino"),
    "without Ray": lambda: not _has_package("ray"),
    "without zig": lambda: not _has_package("ziglang"),
    "without onnxruntime-web": lambda: not has_onnxruntime_web(),
    "without valgrind": lambda: shutil.which("valgrind") is None,
    "without promtool": lambda: shutil.which("promtool") is None,
    "without readelf": lambda: shutil.which("readelf") is None,
    "without Triton's compiler": lambda: not _has_package("triton"),
    "without Triton's wheel": lambda: not (BUILDS / "triton-server" / "made").is_file(),
    "without browser": lambda: not any(map(shutil.which, BROWSERS)),
    "without ONNX Runtime's headers": lambda: not Path("/usr/include/onnxruntime").is_dir(),
    "without addr2line": lambda: shutil.which("addr2line") is None,
    "without amx_bf16": lambda: not _has_processor_flag("amx_bf16"),
    "without avx512_bf16": lambda: not _has_processor_flag("avx512_bf16"),
    "without avx512": lambda: not _has_processor_flag("avx512f"),
    "without avx2": lambda: not _has_processor_flag("avx2"),
}
"""What may be true of a machine."""


@dataclass(frozen=True)
class Expected:
    """A reason that tests may be skipped for.

    Attributes:
        reason: A regular expression of the whole reason.
        where: Names of MACHINE, all of which must hold.
        at_most: How many tests; None: any number.
    """

    reason: str
    where: tuple[str, ...] = ()
    at_most: int | None = None


def expected_skips(path: Path = EXPECTED) -> list[Expected]:
    return [
        Expected(**{**entry, "where": tuple(entry.get("where", ()))})
        for entry in yaml.safe_load(path.read_text())
    ]


def unexpected_skips(
    counts: Mapping[str, int], expected: Sequence[Expected], holds: Callable[[str], bool]
) -> list[str]:
    """Return a sentence for each reason that is not expected here, or that too many tests give.

    Args:
        counts: How many tests were skipped for each reason.
        holds: Whether something of MACHINE is true here.
    """
    problems = []
    seen: Counter[Expected] = Counter()
    for reason, count in sorted(counts.items()):
        entry = next((item for item in expected if re.fullmatch(item.reason, reason, re.S)), None)
        if entry is None:
            problems.append(f"{count} x {reason}: not in {EXPECTED.name}")
            continue
        missing = [name for name in entry.where if not holds(name)]
        if missing:
            problems.append(f"{count} x {reason}: expected {', '.join(missing)} only")
        seen[entry] += count
    problems += [
        f"{count} x {entry.reason}: expected at most {entry.at_most}"
        for entry, count in seen.items()
        if entry.at_most is not None and count > entry.at_most
    ]
    return problems


def reason_of(report: object) -> str:
    """Return why a test was skipped, from pytest's report of it."""
    where_and_why = getattr(report, "longrepr", None)
    text = where_and_why[2] if isinstance(where_and_why, tuple) else str(where_and_why)
    return text.removeprefix("Skipped: ")
