from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import helper

from moh_deploy import native
from moh_deploy.errors import BackendError, ConfigError
from moh_deploy.graph.load_model import add_function_bodies
from moh_deploy.native import kernel_library
from moh_deploy.ops import MOH_ROUTER
from moh_deploy.package import OnnxPackage
from moh_deploy.runtime import kernel_use as ort_kernels
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.kernel_use import BFLOAT16_SETS, Kernels
from moh_deploy.runtime.layer_runs import LayerImpl
from moh_deploy.runtime.onnxruntime import session as backend
from moh_deploy.runtime.onnxruntime import session as ort_session
from moh_deploy.runtime.onnxruntime.runner import OrtRunner
from moh_deploy.runtime.onnxruntime.session import Placement, open_session
from moh_deploy.system.npz import Array
from tests.handmade_package import model, vectors, write_package
from tests.kernel_library import required_library, without_library
from tests.nightly import sampled

NODE = "blocks.0.attn/moh"
FLOAT = ir.TensorType(ir.DataType.FLOAT)


@pytest.fixture
def package(tmp_path: Path) -> OnnxPackage:
    return write_package(tmp_path / "package")


@pytest.fixture
def library() -> Path:
    return required_library()


def result(runner: OrtRunner) -> Array:
    return runner.run(vectors(batch=3, seq=37, seed=4).inputs)["y"]


# With a library.


@pytest.mark.parametrize("kernels", ["auto", "require"])
def test_library_of_the_installation_runs_moh_nodes(
    package: OnnxPackage, library: Path, kernels: Kernels
):
    runner = open_session(package, Variant(kernels=kernels))
    assert runner.describe().layer_impl == {NODE: "kernel"}
    assert runner.describe().kernels.library == library
    assert runner.describe().kernels.reason is None
    expected = vectors(batch=3, seq=37, seed=4).outputs["y"]
    np.testing.assert_allclose(result(runner), expected, atol=1e-5)


@pytest.mark.parametrize("number", [4, 31])
def test_any_number_of_function_bodies_leaves_every_node_on_its_kernel(
    library: Path, tmp_path: Path, number: int
):
    save_moved(tmp_path / "model.onnx", f"moh.{number}")
    runner = open_session(tmp_path / "model.onnx", Variant(kernels="require"))
    assert runner.describe().layer_impl == {NODE: "kernel"}
    assert runner.describe().kernels.no_kernel_for == ()


def save_moved(path: Path, domain: str) -> None:
    """Save the handmade model with its node, and the node's body, in another domain."""
    content = model()
    content.functions[0].domain = domain
    next(node for node in content.graph.node if node.domain == "moh").domain = domain
    content.opset_import.append(onnx.helper.make_opsetid(domain, 1))
    onnx.save(content, path)


ROUTERS: list[tuple[tuple[str, ...], dict[str, int | str]]] = [
    (("routed",), {"top_k": 2, "gate_mode": "mask"}),
    (("routed",), {"top_k": 2}),
    (("routed",), {"top_k": 2, "num_shared_heads": 2}),
    (("routed", "shared"), {"top_k": 2, "num_shared_heads": 2}),
    (("routed", "shared", "stage"), {"top_k": 2, "num_shared_heads": 2}),
]


def test_routers_of_five_settings_all_run_on_kernels(library: Path, tmp_path: Path):
    ports = {
        name: ir.Value(name=name, shape=ir.Shape(["b", "s", size]), type=FLOAT)
        for name, size in {"routed": 4, "shared": 2, "stage": 2}.items()
    }
    nodes = [
        ir.node("MoHRouter", [ports[p] for p in present], MOH_ROUTER.complete(given), domain="moh")
        for present, given in ROUTERS
    ]
    for number, node in enumerate(nodes):
        node.name, node.outputs[0].name = f"router {number}", f"gates {number}"
        node.outputs[0].type = FLOAT
    graph = ir.Graph(
        list(ports.values()), [n.outputs[0] for n in nodes], nodes=nodes, opset_imports={"": 20}
    )
    built = ir.Model(graph, ir_version=10)
    add_function_bodies(built, opset=20)
    assert {node.domain for node in nodes} == {"moh", "moh.2", "moh.3", "moh.4", "moh.5"}
    ir.save(built, tmp_path / "model.onnx")
    draw = np.random.default_rng(0)
    inputs = {n: draw.standard_normal((1, 3, v.shape[2])).astype("f") for n, v in ports.items()}
    on_kernels = open_session(tmp_path / "model.onnx", Variant(kernels="require"))
    on_bodies = open_session(tmp_path / "model.onnx", Variant(kernels="off"))
    for name, gates in on_kernels.run(inputs).items():
        np.testing.assert_allclose(gates, on_bodies.run(inputs)[name], atol=1e-5)


def test_switched_off_library_is_not_used(package: OnnxPackage):
    runner = open_session(package, Variant(kernels="off"))
    assert runner.describe().layer_impl == {NODE: "function"}
    assert (runner.describe().kernels.library, runner.describe().kernels.reason) == (
        None,
        "switched off",
    )


def test_best_instruction_set_is_the_default_and_every_other_one_can_be_chosen(
    package: OnnxPackage, library: Path
):
    best, *others = ort_kernels.instruction_sets(library)
    assert open_session(package).describe().kernels.instruction_set == best
    for name in others:
        runner = open_session(package, Variant(kernels="require", instruction_set=name))
        assert runner.describe().kernels.instruction_set == name
        expected = vectors(batch=3, seq=37, seed=4).outputs["y"]
        np.testing.assert_allclose(result(runner), expected, atol=1e-5)


def test_unknown_instruction_set_is_refused_naming_the_usable_ones(
    package: OnnxPackage, library: Path
):
    with pytest.raises(
        ConfigError, match=r"'baselin' cannot be used here, only .*baseline"
    ) as error:
        open_session(package, Variant(instruction_set="baselin"))
    assert error.value.hint == "Did you mean 'baseline'?"


def test_compute_type_of_the_package_is_applied(tmp_path: Path, library: Path):
    package = write_package(tmp_path / "package", compute_type="bfloat16")
    exact = result(open_session(package, Variant(kernels="off")))
    for name in ort_kernels.instruction_sets(library):
        runner = open_session(package, Variant(kernels="require", instruction_set=name))
        rounds = name in BFLOAT16_SETS
        assert runner.describe().kernels.compute_type == ("bfloat16" if rounds else "float32")
        error = np.abs(result(runner) - exact).max()
        assert (1e-5 < error < 5e-2) if rounds else error < 1e-5


def test_compute_type_of_the_caller_wins(tmp_path: Path, library: Path):
    package = write_package(tmp_path / "package", compute_type="bfloat16")
    runner = open_session(package, Variant(compute_type="float32"))
    assert runner.describe().kernels.compute_type == "float32"
    exact = result(open_session(package, Variant(kernels="off")))
    np.testing.assert_allclose(result(runner), exact, atol=1e-5)


def told(package: OnnxPackage, compute_type: str) -> bytes:
    """Return the package's model, whose attention says what its products may be rounded to."""
    model = onnx.load(package.root / "model.onnx")
    (node,) = [node for node in model.graph.node if node.op_type == "MoHAttention"]
    node.attribute.append(onnx.helper.make_attribute("compute_type", compute_type))
    return model.SerializeToString()


def bare_result(model: bytes, library: Path, entries: dict[str, str]) -> Array:
    """Run a model in a session that nobody of ours makes, with these entries."""
    options = ort.SessionOptions()
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    options.register_custom_ops_library(str(library))
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    (y,) = session.run(["y"], vectors(batch=3, seq=37, seed=4).inputs)
    array: Array = y
    return array


def test_compute_type_of_a_node_holds_where_the_session_says_nothing(
    package: OnnxPackage, library: Path
):
    if "avx512_bf16" not in ort_kernels.instruction_sets(library):
        pytest.skip("this machine has no avx512_bf16")
    rounds, exact = told(package, "bfloat16"), told(package, "float32")
    expected = vectors(batch=3, seq=37, seed=4).outputs["y"]
    assert 1e-5 < np.abs(bare_result(rounds, library, {}) - expected).max() < 5e-2
    assert np.abs(bare_result(exact, library, {}) - expected).max() < 1e-5
    # What the session says goes before, in both directions.
    for told_model in (rounds, exact):
        for asked, least, most in (("float32", 0, 1e-5), ("bfloat16", 1e-5, 5e-2)):
            error = np.abs(bare_result(told_model, library, {"moh.compute_type": asked}) - expected)
            assert least <= error.max() < most


def test_node_with_another_compute_type_is_refused(package: OnnxPackage, library: Path):
    with pytest.raises(Exception, match=r"compute_type is 'int8'; expected float32 or bfloat16"):
        bare_result(told(package, "int8"), library, {})


def test_function_body_does_not_mind_a_compute_type(package: OnnxPackage, tmp_path: Path):
    (tmp_path / "model.onnx").write_bytes(told(package, "bfloat16"))
    runner = open_session(tmp_path / "model.onnx", Variant(kernels="off"))
    np.testing.assert_array_equal(
        result(runner), result(open_session(package, Variant(kernels="off")))
    )


# Without one.


def test_without_library_the_same_package_gives_the_same_through_function_bodies(
    package: OnnxPackage, library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with_kernels = result(open_session(package, Variant(kernels="require")))
    without_library(tmp_path / "none", monkeypatch)
    runner = open_session(package)
    assert runner.describe().layer_impl == {NODE: "function"}
    assert "cmake was not found" in str(runner.describe().kernels.reason)
    np.testing.assert_allclose(result(runner), with_kernels, atol=1e-5)


def test_required_library_that_is_not_there_is_refused_with_the_reason(
    package: OnnxPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    without_library(tmp_path / "none", monkeypatch)
    with pytest.raises(BackendError, match=r"there is no kernel library: .*cmake was not") as error:
        open_session(package, Variant(kernels="require"))
    assert error.value.exit_code == 6
    assert "--kernels auto" in str(error.value.hint)


def test_unknown_choice_is_refused(package: OnnxPackage):
    with pytest.raises(ConfigError, match="kernels is 'fast', expected auto, off or require"):
        open_session(package, Variant(kernels=cast(Kernels, "fast")))


# With one that is no good: an error, whatever the function bodies could do.


@pytest.mark.parametrize("kernels", ["auto", "require"])
def test_corrupt_library_is_an_error_that_names_it(
    package: OnnxPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernels: Kernels
):
    broken = without_library(tmp_path / "none", monkeypatch) / native.LIBRARY_NAME
    broken.write_bytes(b"no library")
    with pytest.raises(BackendError, match=rf"{broken} cannot be loaded: ") as error:
        open_session(package, Variant(kernels=kernels))
    assert "--kernels off" in str(error.value.hint)
    assert open_session(package, Variant(kernels="off")).describe().layer_impl == {NODE: "function"}


def test_library_of_another_version_is_an_error_that_says_to_reinstall(
    package: OnnxPackage, library: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ort_kernels, "__version__", "9.8.7")
    with pytest.raises(BackendError, match=r"is of version .*, moh-deploy of 9\.8\.7") as error:
        open_session(package)
    assert "Install moh-deploy again" in str(error.value.hint)


def test_other_library_is_no_kernel_library(package: OnnxPackage):
    # numpy comes with libraries, and this is not about them.
    other = next(Path(np.__file__).parent.rglob("*.so"))
    with pytest.raises(BackendError, match="is no kernel library of moh-deploy"):
        open_session(package, Variant(library=other))


def test_library_that_the_runtime_refuses_is_an_error_with_its_reason(
    package: OnnxPackage, library: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(self: ort.SessionOptions, path: str) -> None:
        raise RuntimeError("this ONNX Runtime is too old")

    monkeypatch.setattr(ort.SessionOptions, "register_custom_ops_library", refuse)
    with pytest.raises(BackendError, match=r"cannot be registered .* is too old"):
        open_session(package)


def test_session_is_believed_not_the_library(package: OnnxPackage, library: Path, monkeypatch):
    """What a runtime that ignores the library would do."""
    monkeypatch.setattr(backend, "register", lambda use, options, domains: None)
    found = open_session(package).describe()
    assert found.layer_impl == {NODE: "function"}
    assert found.kernels.describe().endswith("; it has no kernel for moh::MoHAttention")
    message = (
        rf"1 of 1 MoH nodes run as .* bodies, .*: {NODE}\. The library {library} has no kernel for"
        r" moh::MoHAttention\."
    )
    with pytest.raises(BackendError, match=message):
        open_session(package, Variant(kernels="require"))


def test_library_can_be_a_copy_elsewhere(package: OnnxPackage, library: Path, tmp_path: Path):
    copy = Path(shutil.copy(library, tmp_path / "other.so"))
    runner = open_session(package, Variant(kernels="require", library=copy))
    assert runner.describe().kernels.library == copy


@dataclass
class FakeNode:
    name: str
    domain: str


@dataclass
class FakeSession:
    """A session that kept these nodes, as one with a kernel library would."""

    nodes: list[FakeNode]

    def get_provider_graph_assignment_info(self) -> list[FakeSession]:
        return [self]

    def get_nodes(self) -> list[FakeNode]:
        return self.nodes


def as_session(*nodes: FakeNode) -> ort.InferenceSession:
    return cast(ort.InferenceSession, FakeSession(list(nodes)))


def test_node_that_the_session_kept_runs_on_a_kernel(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(ort_session, "_reports_assignment", lambda: True)
    session = as_session(FakeNode("a", "moh"), FakeNode("b", ""))
    assert Placement(["a", "b"], tmp_path).read(session) == {"a": "kernel", "b": "function"}


def test_node_that_the_written_model_kept_runs_on_a_kernel(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(ort_session, "_reports_assignment", lambda: False)
    kept = [
        helper.make_node("MoHAttention", ["x"], ["y"], name="a", domain="moh"),
        helper.make_node("Mul", ["y", "y"], ["z"], name="b"),
    ]
    graph = helper.make_graph(kept, "dumped", [], [])
    onnx.save(helper.make_model(graph), tmp_path / "optimized.onnx")
    assert Placement(["a", "b"], tmp_path).read(as_session()) == {"a": "kernel", "b": "function"}


@sampled(2)
@pytest.mark.parametrize("optimize", [True, False])
@pytest.mark.parametrize("external_data", [True, False])
def test_older_runtime_that_writes_its_model_out_gives_the_same_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimize: bool, external_data: bool
):
    monkeypatch.setattr(ort_session, "_reports_assignment", lambda: False)
    package = write_package(tmp_path / "package", external_data=external_data)
    told: dict[str, LayerImpl] = {}
    choices: tuple[Kernels, ...] = ("off", "auto")
    for kernels in choices:
        runner = open_session(
            package, Variant(kernels=kernels, optimize=optimize, extra_outputs=package.gate_names)
        )
        told[kernels] = runner.describe().layer_impl["blocks.0.attn/moh"]
    assert told == {"off": "function", "auto": "kernel" if kernel_library() else "function"}
