"""What arms are timed on, where a package brings nothing along."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from moh_deploy.decision.measure import timed_inputs
from moh_deploy.errors import ConfigError
from tests.labelled_package import write_classifier


@pytest.mark.parametrize("sizes", [(), ({"batch": 2},)], ids=["example", "asked"])
def test_package_without_recorded_runs_is_refused(
    tmp_path: Path, sizes: tuple[dict[str, int], ...]
):
    bare = replace(write_classifier(tmp_path / "package"), vectors=())
    with pytest.raises(ConfigError, match="package holds no recorded inputs, and no samples are"):
        timed_inputs(bare, None, sizes)
