"""Nothing is made of a package that is not its original model."""

from __future__ import annotations

from pathlib import Path

import pytest

from moh_deploy.errors import ValidationError
from moh_deploy.validate.recorded_parity import compare_recorded, require_equal
from tests.routed_package import write_routed


def test_right_package_is_equal(tmp_path: Path):
    package = write_routed(tmp_path / "package")
    assert compare_recorded(package).equal
    require_equal(package)


def test_wrong_package_is_refused_with_its_path_the_layer_and_the_next_step(tmp_path: Path):
    package = write_routed(tmp_path / "package", "wrong scale")
    refused = r"package, the package to start from, is not equal"
    with pytest.raises(ValidationError, match=refused) as no:
        require_equal(package)
    assert "'blocks.1.attn'" in no.value.message
    assert "`moh-deploy bisect` finds where it diverges" in (no.value.hint or "")
