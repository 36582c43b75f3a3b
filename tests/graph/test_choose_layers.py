import errno
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import moh_deploy
from moh_deploy.errors import PackageError
from moh_deploy.graph import choose_layers as job
from moh_deploy.graph.choose_layers import choose_layers, ops_of, write_choices
from moh_deploy.package import LayerInfo, OnnxPackage, with_choices
from tests.graph.models import content, run_three_layers, three_layers, value
from tests.graph.models import node as make_node
from tests.handmade_package import LAYER, write_package
from tests.kernel_library import required_library
from tests.nightly import sampled
from tests.two_layers import write_two_layers

LAYERS = [replace(LAYER, path=f"blocks.{i}", node=f"attention {i}") for i in range(3)]


def chosen(*choices: str) -> list[LayerInfo]:
    return [replace(layer, choice=item) for layer, item in zip(LAYERS, choices, strict=True)]


def domains(built: ir.Model) -> list[str]:
    return [node.domain for node in built.graph]


@sampled(2)
@pytest.mark.parametrize(
    "choices",
    [
        ["dense", "sparse", "sparse"],
        ["sparse", "dense", "sparse"],
        ["dense", "dense", "sparse"],
        ["dense", "dense", "dense"],
    ],
)
def test_nodes_go_where_they_were_chosen_to_with_their_bodies(choices: Sequence[str]):
    built = three_layers()
    before = run_three_layers(ir.to_proto(built))
    assert choose_layers(built, chosen(*choices))
    bases = ["moh.dense" if item == "dense" else "moh" for item in choices]
    assert domains(built) == [bases[0], f"{bases[1]}.2", bases[2]]
    assert set(built.functions) == {node.op_identifier() for node in built.graph}
    np.testing.assert_array_equal(run_three_layers(ir.to_proto(built)), before)


def test_nodes_come_back_and_nothing_is_left_of_where_they_were():
    built, untouched = three_layers(), content(three_layers())
    for choices in (["dense", "sparse", "dense"], ["dense"] * 3, ["sparse", "dense", "dense"]):
        choose_layers(built, chosen(*choices))
        assert content(built) != untouched
    assert choose_layers(built, chosen("sparse", "sparse", "sparse"))
    assert content(built) == untouched


def test_dense_domain_is_imported_only_where_it_is_used():
    built = three_layers()
    choose_layers(built, chosen("dense", "sparse", "sparse"))
    assert built.opset_imports == {"": 20, "moh": 1, "moh.2": 1, "moh.dense": 1}
    every = ("moh", "moh.2", "moh.dense")
    assert ops_of(built) == {f"{domain}::MoHAttention": 1 for domain in every}
    choose_layers(built, chosen("sparse", "sparse", "sparse"))
    assert built.opset_imports == {"": 20, "moh": 1, "moh.2": 1}
    assert ops_of(built) == {"moh::MoHAttention": 1, "moh.2::MoHAttention": 1}


def test_functions_and_nodes_of_others_are_left_alone():
    built = three_layers()
    x, y = value("other x", ["n"]), value("other y", ["n"])
    body = ir.Graph([x], [y], nodes=[make_node("Relu", [x], y)], opset_imports={"": 20})
    other = ir.Function("theirs", "MoHAttention", graph=body, attributes=[])
    built.functions[other.identifier()] = other
    choose_layers(built, chosen("dense", "dense", "dense"))
    assert built.functions[("theirs", "MoHAttention", "")] is other


def test_layer_whose_node_is_not_there_is_refused_and_nothing_moves():
    built = three_layers()
    lost = replace(LAYERS[1], node="attention 7", choice="dense")
    with pytest.raises(PackageError, match="no MoH node 'attention 7'"):
        choose_layers(built, [replace(LAYERS[0], choice="dense"), lost])
    assert domains(built) == ["moh", "moh.2", "moh"]


@pytest.fixture
def package(tmp_path: Path) -> OnnxPackage:
    return write_two_layers(tmp_path / "package")


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def choose(package: OnnxPackage, **choices: str) -> OnnxPackage:
    layers = with_choices(
        package.manifest.layers, {name.replace("_", "."): item for name, item in choices.items()}
    )
    return write_choices(package, layers, package.root)


def ways(package: OnnxPackage, **options: object) -> list[str | None]:
    return [run.runs_as for run in moh_deploy.inspect(package.root, **options).layer_runs]


def test_dense_layer_runs_as_its_body_and_says_so(package: OnnxPackage):
    choose(package, blocks_0_attn="dense")
    assert ways(package, kernels="off") == ["dense", "function"]
    assert moh_deploy.verify(package.root, kernels="off").equal


def test_dense_layer_runs_as_its_body_where_there_are_kernels(package: OnnxPackage):
    required_library()
    choose(package, blocks_0_attn="dense")
    # A layer that is dense on purpose is not a missing kernel.
    assert ways(package, kernels="require") == ["dense", "kernel"]
    assert moh_deploy.verify(package.root, kernels="require").equal


@pytest.mark.parametrize("external_data", [False, True])
def test_choice_can_be_taken_back(tmp_path: Path, external_data: bool):
    package = write_package(tmp_path / "package", external_data=external_data)
    first = files(choose(package, all="sparse").root)
    assert files(choose(package, all="dense").root) != first
    assert moh_deploy.verify(package.root).equal
    assert files(choose(package, all="sparse").root) == first
    assert [entry.name for entry in tmp_path.iterdir()] == ["package"]


def test_what_was_not_chosen_stays_as_it_was(package: OnnxPackage):
    written = choose(package, blocks_1_attn="dense")
    first, second = written.manifest.layers
    assert (first.choice, second.choice) == (None, "dense")
    assert written.manifest.ops == {
        "moh::MoHAttention": 1,
        "moh.dense::MoHAttention": 1,
        "moh::MoHRouter": 1,
    }
    unchanged = replace(
        written.manifest,
        layers=package.manifest.layers,
        ops=package.manifest.ops,
        files=package.manifest.files,
    )
    assert unchanged == package.manifest
    assert written.manifest.files["vectors.npz"] == package.manifest.files["vectors.npz"]


def test_choice_may_be_written_elsewhere(package: OnnxPackage, tmp_path: Path):
    before = files(package.root)
    layers = with_choices(package.manifest.layers, {"all": "dense"})
    assert ways(write_choices(package, layers, tmp_path / "other")) == ["dense", "dense"]
    assert files(package.root) == before


@pytest.mark.parametrize("problem", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
def test_whatever_stops_the_writing_leaves_the_package(
    package: OnnxPackage, monkeypatch: pytest.MonkeyPatch, problem: BaseException
):
    def stop(_model: object, path: Path) -> None:
        path.write_bytes(b"half a model")
        raise problem

    monkeypatch.setattr(job, "save_with_weights", stop)
    before = files(package.root)
    expected = PackageError if isinstance(problem, OSError) else KeyboardInterrupt
    with pytest.raises(expected, match="disk full" if isinstance(problem, OSError) else None):
        choose(package, all="dense")
    assert files(package.root) == before
    assert [entry.name for entry in package.root.parent.iterdir()] == ["package"]


def test_choice_written_to_another_layer_is_found_out(package: OnnxPackage, tmp_path: Path):
    """A planted bug: the manifest says that the first layer is dense, the model that the second."""
    chosen = choose(package, blocks_1_attn="dense")
    model = onnx.load(chosen.model_path)
    root = write_two_layers(tmp_path / "other").root
    package = choose(OnnxPackage.open(root), blocks_0_attn="dense")
    onnx.save(model, package.model_path)
    with pytest.raises(PackageError, match=r"blocks\.0\.attn/moh: moh\.dense', .*: moh'\."):
        open_without_digests(package)


def open_without_digests(package: OnnxPackage) -> None:
    from moh_deploy.runtime.base import Variant
    from moh_deploy.runtime.open_runner import open_runner

    open_runner(OnnxPackage.open(package.root, check_digests=False), Variant(kernels="off"))
