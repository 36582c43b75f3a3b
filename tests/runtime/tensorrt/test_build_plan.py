from __future__ import annotations

from pathlib import Path

import pytest

from moh_deploy.errors import BackendError
from moh_deploy.runtime.tensorrt.build_plan import BuildPlan
from moh_deploy.runtime.tensorrt.flavour import FLAVOURS
from moh_deploy.runtime.tensorrt.messages import Stack
from tests.handmade_package import write_package


@pytest.mark.parametrize(
    ("level", "found", "is_refused"),
    [
        ("SAME_COMPUTE_CAPABILITY", "10.8.0.43", True),
        ("SAME_COMPUTE_CAPABILITY", "10.9.0.34", False),
        ("AMPERE_PLUS", "10.8.0.43", False),
        (None, "10.8.0.43", False),
    ],
)
def test_level_that_tensorrt_does_not_have_yet_is_refused(
    tmp_path: Path, level: str | None, found: str, is_refused: bool
):
    plan = BuildPlan(
        FLAVOURS["tensorrt"],
        write_package(tmp_path / "package"),
        low=None,
        profiles=(),
        targets=(),
        workspace_bytes=None,
        timing_cache=None,
        library=None,
        embed_plugin=False,
        keep_onnx=False,
        hardware_compatibility=level,
    )
    assert plan.is_portable == (level == "AMPERE_PLUS")
    stack = Stack(found, None, None, None)
    if not is_refused:
        plan.require_hardware_level(stack)
        return
    with pytest.raises(BackendError, match=r"TensorRT 10\.8\.0\.43 builds no engine.*10\.9 or"):
        plan.require_hardware_level(stack)
