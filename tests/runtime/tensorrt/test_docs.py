from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cuda.trt import builds

DOCS = Path(__file__).parents[3] / "docs"


def test_what_loads_an_engine_compiles(tmp_path: Path):
    if shutil.which(builds.COMPILER) is None:
        pytest.skip(f"no C++ compiler: {builds.COMPILER}")
    (code,) = re.findall(r"```cpp\n(.*?)```", (DOCS / "tensorrt.md").read_text(), re.DOTALL)
    (tmp_path / "load.cc").write_text(code)
    headers = [builds.required_headers(), builds.cuda_headers()]
    includes = [word for folder in headers for word in ("-isystem", str(folder))]
    command = [builds.COMPILER, *builds.FLAGS, "-fsyntax-only", *includes, tmp_path / "load.cc"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
