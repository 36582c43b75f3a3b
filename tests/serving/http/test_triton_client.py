"""Triton's own client asks our server. It lives in an environment of its own, with Triton."""

import json
import subprocess
from pathlib import Path

import numpy as np

from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.open_runner import open_runner
from tests.handmade_package import WIDTH, write_package
from tests.nightly import nightly
from tests.serving.http.running import LONG_S, running
from tests.serving.triton.triton_environment import python_or_skip

CLIENT = Path(__file__).with_name("triton_client.py")


@nightly
def test_tritons_client_is_answered(tmp_path: Path):
    python = python_or_skip()
    package = write_package(tmp_path / "package")
    rng = np.random.default_rng(0)
    shapes = [(1 + i % 4, 1 + i % 3, WIDTH) for i in range(24)]
    asked = {f"x{i}": rng.standard_normal(s).astype(np.float32) for i, s in enumerate(shapes)}
    np.savez(tmp_path / "in.npz", **asked)
    with running(package.root, tmp_path / "said", "--threads", "1") as server:
        address = server.url.removeprefix("http://")
        files = str(tmp_path / "in.npz"), str(tmp_path / "out.npz")
        ran = subprocess.run(
            [python, CLIENT, address, *files], capture_output=True, text=True, timeout=LONG_S
        )
        assert ran.returncode == 0, ran.stderr
        assert server.stop() == 0
    answers = dict(np.load(tmp_path / "out.npz"))
    assert len(answers) == 48
    with open_runner(package, Variant(threads=1)) as runner:
        for i in range(24):
            expected = runner.run({"x": asked[f"x{i}"]})["y"]
            for form in ("raw", "json"):
                np.testing.assert_allclose(answers[f"{form}{i}"], expected, rtol=1e-5, atol=1e-6)
    about = json.loads(ran.stdout)
    assert (about["live"], about["ready"], about["model ready"]) == (True, True, True)
    assert about["server"]["extensions"] == ["binary_tensor_data"]
    assert about["model"]["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, -1, WIDTH]}]
    assert about["ids"] == sorted(asked)
    assert {what: status for what, (status, _) in about["refused"].items()} == {
        "name": "404",
        "version": "404",
        "compression": "415",
    }
