"""Recorded runs that a runtime does not take are said, and the others are compared."""

from dataclasses import replace
from pathlib import Path

import pytest

from moh_deploy.errors import ConfigError
from moh_deploy.runtime.open_runner import opened_package
from moh_deploy.validate.reference.reference import Subject
from tests.handmade_package import vectors, write_package


def test_runs_with_an_empty_axis_are_left_out_in_openvino_and_said(tmp_path: Path):
    package = write_package(tmp_path / "package")
    empty = replace(vectors(seq=0), sizes={"batch": 2, "seq": 0})
    package = replace(package, vectors=(*package.vectors, empty))
    subject = Subject(opened_package(package), package, "auto", "openvino")
    runs, words = subject.recorded()
    assert len(runs) == 1
    assert words.endswith(", not run in OpenVINO for an empty axis: (batch=2, seq=0)")
    everywhere = replace(subject, runtime="onnxruntime")
    assert len(everywhere.recorded()[0]) == 2
    assert "OpenVINO" not in everywhere.recorded()[1]
    alone = replace(package, vectors=(empty,))
    with pytest.raises(ConfigError, match=r"every recorded run of .* has an empty axis"):
        Subject(opened_package(alone), alone, "auto", "openvino").recorded()
