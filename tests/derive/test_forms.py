"""A package that is written again with its caches in place, and runs with one memory for each."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from packaging import version

import moh_deploy
from moh_deploy.derive.forms import with_top_k, write_caches_in_place
from moh_deploy.errors import ConfigError, ValidationError
from moh_deploy.graph import caches_in_place
from moh_deploy.graph.caches_in_place import put_caches_in_place
from moh_deploy.graph.change_top_k import change_top_k
from moh_deploy.graph.choose_layers import choose_layers
from moh_deploy.graph.load_model import load_ir
from moh_deploy.package import OnnxPackage, SizeRange
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.onnxruntime.runner import OrtRunner
from moh_deploy.runtime.onnxruntime.session import open_session
from moh_deploy.system.progress import SilentProgress
from tests.graph.decoders import decoder, recorded, write_decoder
from tests.grouped_package import HEADS, write_grouped
from tests.handmade_package import write_package

scatters = pytest.mark.skipif(
    version.parse(ort.__version__) < version.parse("1.25"),
    reason="this ONNX Runtime may have no TensorScatter",
)


@pytest.fixture(scope="module")
def grows(tmp_path_factory: pytest.TempPathFactory) -> OnnxPackage:
    return write_decoder(tmp_path_factory.mktemp("grows") / "package")


@pytest.fixture(scope="module")
def written(grows: OnnxPackage, tmp_path_factory: pytest.TempPathFactory) -> OnnxPackage:
    output = tmp_path_factory.mktemp("written") / "package"
    return write_caches_in_place(grows, output, SilentProgress())


@scatters
def test_package_is_proven_and_opened_again(grows: OnnxPackage, written: OnnxPackage):
    package = OnnxPackage.open(written.root)
    assert package.manifest.opset == 24
    assert package.manifest.proof.max_abs_error < 1e-5
    assert len(package.vectors) == len(grows.vectors)
    assert [buffer.present for buffer in package.manifest.caches.buffers] == [
        "present_key",
        "present_value",
    ]
    report = moh_deploy.verify(written.root, kernels="off")
    assert report.failure is None


@scatters
def test_caches_in_place_are_not_put_there_again(written: OnnxPackage, tmp_path: Path):
    with pytest.raises(ConfigError, match="are in place already"):
        write_caches_in_place(written, tmp_path / "again", SilentProgress())


@scatters
@pytest.mark.parametrize("kernels", ["off", "auto"])
def test_runs_write_into_memory_of_their_own(written: OnnxPackage, kernels: str):
    runner = open_session(written, Variant(kernels=kernels))
    known = written.vectors[0]
    inputs = {name: array.copy() for name, array in known.inputs.items()}
    for _ in range(2):
        results = runner.run(inputs)
        for name, array in known.outputs.items():
            np.testing.assert_allclose(results[name], array, atol=1e-5)
        for name, array in known.inputs.items():
            np.testing.assert_array_equal(inputs[name], array)
    (only,) = runner.run_returning(inputs, ["y"]).values()
    np.testing.assert_allclose(only, known.outputs["y"], atol=1e-5)


@scatters
def test_no_buffer_is_copied_by_the_runtime(written: OnnxPackage, capfd, monkeypatch):
    monkeypatch.setattr("moh_deploy.runtime.onnxruntime.session._FATAL_ONLY", 2)  # warnings too
    runner, inputs = open_session(written, Variant(kernels="off")), written.vectors[0].inputs
    runner.run(inputs)
    runner.run_returning(inputs, ["y"])
    runner.bound(inputs)()
    assert "copying" not in capfd.readouterr().err
    # It does say so where a buffer is not bound.
    unbound = OrtRunner(**{**vars(runner), "buffers": {}})
    unbound.run(inputs)
    assert "copying past_cache" in capfd.readouterr().err


@scatters
def test_timed_calls_write_at_the_same_place(written: OnnxPackage):
    runner, known = open_session(written, Variant(kernels="off")), written.vectors[0]
    inputs = {name: array.copy() for name, array in known.inputs.items()}
    call = runner.bound(inputs)
    call()
    call()
    np.testing.assert_array_equal(inputs["past_key"], known.inputs["past_key"])


@scatters
def test_tokens_without_room_are_refused(written: OnnxPackage):
    runner, inputs = open_session(written, Variant(kernels="off")), dict(written.vectors[1].inputs)
    inputs["mask"] = np.ones((3, 11), bool)
    message = r"the caches have 10 places \('past_key'\), 7 of them filled: 4 more tokens do"
    with pytest.raises(ConfigError, match=message):
        runner.run(inputs)


@scatters
def test_planted_fault_is_caught_by_what_was_recorded(
    grows: OnnxPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # Attention is told of what was cached before the call: new tokens do not see each other.
    def faulty(model, *known):
        caches = put_caches_in_place(model, *known)
        nodes = {node.name: node for node in model.graph}
        nodes["caches.filled"].replace_input_with(0, nodes["caches.past"].outputs[0])
        return caches

    monkeypatch.setattr("moh_deploy.derive.forms.put_caches_in_place", faulty)
    with pytest.raises(ValidationError, match="the package with caches in place is not equal"):
        write_caches_in_place(grows, tmp_path / "faulty", SilentProgress())
    assert not (tmp_path / "faulty").exists()


@scatters
def test_package_that_is_not_its_original_is_refused_before(tmp_path: Path):
    package = write_decoder(tmp_path / "package")
    package.vectors[0].outputs["y"][:] += 1
    with pytest.raises(ValidationError, match="the package to start from"):
        write_caches_in_place(package, tmp_path / "written", SilentProgress())


@scatters
def test_places_are_a_dimension_of_their_own(grows: OnnxPackage, monkeypatch, tmp_path: Path):
    monkeypatch.setattr(caches_in_place, "BUFFER", "seq")
    with pytest.raises(ConfigError, match="the model has a dimension 'seq'"):
        write_caches_in_place(grows, tmp_path / "written", SilentProgress())


@scatters
@pytest.mark.parametrize(
    ("choice", "ranges", "expected"),
    [
        ("dense", (), ()),
        ("sparse", (SizeRange("seq", 2, "dense"),), (SizeRange("seq", 2, "dense"),)),
        # What depended on a size that no input has any more is what it is at all others.
        ("sparse", (SizeRange("batch*past", 6, "dense"),), ()),
    ],
)
def test_layers_run_as_they_were_chosen_to(
    tmp_path: Path, choice: str, ranges: tuple[SizeRange, ...], expected: tuple[SizeRange, ...]
):
    model = decoder()
    manifest, _ = recorded(model)
    layers = (replace(manifest.layers[0], choice=choice, ranges=ranges),)
    choose_layers(model, layers)
    package = write_decoder(tmp_path / "package", model, manifest=replace(manifest, layers=layers))
    assert any(node.op_type == "If" for node in model.graph) == bool(ranges)
    written = write_caches_in_place(package, tmp_path / "written", SilentProgress())
    (layer,) = written.manifest.layers
    assert (layer.choice, layer.ranges) == (choice, expected)
    found = open_session(written, Variant(kernels="off")).describe().layer_runs
    assert found


@scatters
def test_inspect_says_that_caches_are_in_place(written: OnnxPackage):
    report = moh_deploy.inspect(written.root)
    text = "2 caches written in place, dimension 'buffer'; filled before a call: total - seq"
    assert text in report.document().findings


@pytest.fixture
def package(tmp_path: Path) -> OnnxPackage:
    return write_grouped(tmp_path / "package")


@pytest.mark.parametrize(("top_k", "open_heads"), [(1, 2), (4, 5), (None, HEADS)])
def test_each_token_has_as_many_heads(
    package: OnnxPackage, tmp_path: Path, top_k: int | None, open_heads: int
):
    made = with_top_k(package.root, tmp_path / "made", top_k=top_k)
    found = OnnxPackage.open(made.root)
    assert (np.count_nonzero(found.vectors[0].gates[0], axis=-1) == open_heads).all()
    (layer,) = found.manifest.layers
    assert (layer.top_k, layer.active_share) == (open_heads - 1, open_heads / HEADS)
    report = moh_deploy.verify(made.root)
    assert report.equal
    assert "(not the original model)" in report.to_markdown()


def test_same_number_is_the_same_model(package: OnnxPackage, tmp_path: Path):
    made = with_top_k(package.root, tmp_path / "made", top_k=2)
    before, after = package.vectors[0], OnnxPackage.open(made.root).vectors[0]
    np.testing.assert_array_equal(before.outputs["y"], after.outputs["y"])


@pytest.mark.parametrize("top_k", [0, 6])
def test_more_heads_than_there_are_is_refused(package: OnnxPackage, tmp_path: Path, top_k: int):
    with pytest.raises(ConfigError, match=f"top_k is {top_k}, but layer .* has 5 routed heads"):
        with_top_k(package.root, tmp_path / "made", top_k=top_k)


def test_router_of_plain_operators_is_refused(tmp_path: Path):
    write_package(tmp_path / "package")
    with pytest.raises(ConfigError, match="form 'custom': plain operators make its gates"):
        with_top_k(tmp_path / "package", tmp_path / "made", top_k=1)


@pytest.mark.parametrize("weighing", ["Mul", "Div"])
def test_router_whose_gates_are_weighed_behind_it_is_refused(package: OnnxPackage, weighing: str):
    model = load_ir(package)
    (router,) = (node for node in model.graph if node.op_type == "MoHRouter")
    (gates,) = router.outputs
    weighed = ir.node(weighing, [gates, gates])
    gates.replace_all_uses_with(weighed.outputs[0])
    for place in (0, 1):
        weighed.replace_input_with(place, gates)
    model.graph.insert_after(router, weighed)
    gates.name, weighed.outputs[0].name = "gates.raw", "gates"
    with pytest.raises(ConfigError, match="operators behind the router weigh its gates"):
        change_top_k(model, package.manifest.layers, 4)
