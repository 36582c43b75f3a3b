"""Engines of whole packages, built on the CPU: with plugins, in every dtype, with dynamic sizes."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

import moh_deploy
from tests.cuda.trt.packages import FORMS, LARGE, SMALL, export, graph, profile
from tests.cuda.trt.rtx import build
from tests.nightly import nightly, nightly_if

PUSHED = ("vit", "float16")


@pytest.fixture(scope="module")
def package_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Exports each form once."""
    made: dict[str, Path] = {}

    def package(name: str) -> Path:
        if name not in made:
            made[name] = export(FORMS[name], tmp_path_factory.mktemp(name))
        return made[name]

    return package


def _node_counts(model: onnx.ModelProto, ops: tuple[str, ...]) -> dict[str, int]:
    types = [node.op_type for node in model.graph.node]
    return {op: types.count(op) for op in ops}


# A push builds the one with every plugin, and others as a command does: tests/api/test_build.py.
ENGINES = [
    pytest.param(name, precision, marks=nightly_if((name, precision) != PUSHED))
    for name in FORMS
    for precision in ("float32", "float16", "bfloat16")
]


@nightly
@pytest.mark.parametrize(("name", "precision"), ENGINES)
def test_the_engine_of_a_package_holds_every_plugin(
    fake_library: Path,
    tmp_path: Path,
    package_of: Callable[[str], Path],
    name: str,
    precision: str,
):
    package = package_of(name)
    if precision != "float32":
        moh_deploy.precision(package, to=precision, output=tmp_path / precision)
        package = tmp_path / precision
    model = graph(package)
    profiles = [profile(model, SMALL), profile(model, LARGE)]
    built = build(model, tmp_path, library=fake_library, profiles=profiles)
    assert built.parsed, built.errors
    ops = FORMS[name].plugins
    counts = _node_counts(model, ops)
    assert min(counts.values()) > 0
    assert {op: built.plugins.count(op) for op in ops} == counts
    assert built.engine, built.log
    for op in ops:
        assert op.encode() in built.engine
    assert any(-1 in shape for _, shape, _ in built.outputs)
