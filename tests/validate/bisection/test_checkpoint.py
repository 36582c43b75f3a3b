import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from moh_deploy.package import OnnxPackage, PackageWriter, TensorInfo, VectorSet
from moh_deploy.validate.bisection import checkpoint
from moh_deploy.validate.bisection.checkpoint import (
    _FAULTS,
    BlindSpots,
    _add_faults,
    checkpoints,
    measure_reactions,
    wrong_values,
)
from moh_deploy.validate.bisection.judge import Recorded, VariantJudge
from moh_deploy.validate.bisection.locate import find_interval
from moh_deploy.validate.bisection.places import ForcedModel, graph_of
from moh_deploy.validate.compare.policy import BUILT_IN_POLICY
from tests.handmade_package import without_layers
from tests.true_manifest import finish_true


def recorded(**shares: float) -> list[Recorded]:
    """Values with errors as shares of what is allowed."""
    return [
        Recorded(name, name, share, 1.0, "wrong" if share > 1 else None)
        for name, share in shares.items()
    ]


def value(name: str, drift: float | None, *, wrong: bool = False) -> Recorded:
    return Recorded(name, name, drift or 0.0, 1.0, "wrong" if wrong else None, drift)


def exact(recorded: list[Recorded], precision: str = "float32", **reactions: float) -> set[str]:
    return {item.what for item in checkpoints(recorded, reactions, precision) if item.exact}


def test_error_of_rounding_is_exact_by_how_much_the_value_reacts():
    """The same error: rounding of a value that reacts much, a fault of one that reacts little."""
    values = [value("much", 1e-6), value("little", 1e-6), value("y", 1.0, wrong=True)]
    assert exact(values, much=10.0, little=0.01, y=10.0) == {"much"}


def test_value_that_does_not_react_is_never_exact():
    """Gates of 0 and 1, say. Nor is one that reacts without bounds, or was not asked."""
    values = [value("gates", 0.0), value("y", 1.0, wrong=True)]
    for reaction in (0.0, math.nan, math.inf):
        assert exact(values, gates=reaction, y=10.0) == set()
    assert exact(values, y=10.0) == set()
    assert exact([value("integers", None), value("y", 1.0, wrong=True)], integers=1.0) == set()


@pytest.mark.parametrize(("fault", "proves"), [(1e-4, True), (1e-6, False)])
def test_error_has_to_be_far_below_what_the_fault_would_make(fault: float, proves: bool):
    values = [value("gates", 2e-7), value("y", fault, wrong=True)]
    assert exact(values, gates=1.0, y=1.0) == ({"gates"} if proves else set())


def test_fault_whose_size_is_not_known_leaves_the_bound_of_rounding():
    """Every token chooses other heads: nothing is left whose error could be taken."""
    values = [value("flipped", None, wrong=True), value("y", 2e-7), value("z", 2e-5)]
    assert exact(values, flipped=1.0, y=1.0, z=1.0) == {"y"}
    values[0] = value("flipped", math.nan, wrong=True)
    assert exact(values, flipped=1.0, y=1.0, z=1.0) == {"y"}


def test_bound_of_rounding_is_that_of_the_precision():
    values = [value("gates", 1e-3), value("y", 1.0, wrong=True)]
    assert exact(values, "float16", gates=1.0, y=1.0) == {"gates"}
    assert exact(values, "float32", gates=1.0, y=1.0) == set()


def test_without_anything_above_its_limit_what_is_nearest_to_it_counts():
    near = wrong_values(recorded(first=0.8, second=0.01))
    assert [item.value for item in near] == ["first"]
    assert len(wrong_values(recorded(first=0.8, second=0.3))) == 2


def test_wrong_value_is_worse_than_any_right_one():
    flip = Recorded("router", "gates", 0.0, 1.0, "3 tokens choose other heads")
    assert flip.badness > Recorded("router", "gates", 0.9, 1.0, None).badness
    assert math.isinf(Recorded("output", "y", math.nan, 1.0, "NaN").share)


WIDTH = 16


def weight(seed: int) -> np.ndarray:
    drawn = np.random.default_rng(seed).standard_normal((WIDTH, WIDTH)) * 0.3
    return drawn.astype(np.float32)


def write(output: Path, scale: float = 1.0) -> OnnxPackage:
    """Two outputs: one behind a norm of a sum, one of the sum itself; `scale` makes it wrong."""
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["a"], name="first"),
        helper.make_node("MatMul", ["a", "mixing"], ["b"], name="mixed"),
        helper.make_node("Add", ["x", "b"], ["sum"], name="sum"),
        helper.make_node("Mul", ["sum", "scale"], ["scaled"], name="scaled"),
        helper.make_node("LayerNormalization", ["scaled", "ones"], ["normal"], name="norm"),
        helper.make_node("MatMul", ["normal", "second"], ["behind"], name="behind"),
        helper.make_node("MatMul", ["scaled", "third"], ["beside"], name="beside"),
    ]
    values = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", WIDTH])]
    results = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", WIDTH])
        for name in ("behind", "beside")
    ]
    weights = {"first": weight(1), "second": weight(2), "third": weight(3)}
    weights |= {
        "mixing": weight(4),
        "ones": np.ones(WIDTH, np.float32),
        "scale": np.float32([scale]),
    }
    constants = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "g", values, results, constants)
    opsets = [helper.make_opsetid("", 20)]
    x = np.random.default_rng(0).standard_normal((5, WIDTH)).astype(np.float32)
    total = (x + x @ weights["first"] @ weights["mixing"]).astype(np.float64)
    normal = (total - total.mean(-1, keepdims=True)) / np.sqrt(total.var(-1, keepdims=True) + 1e-5)
    known = {"behind": normal @ weights["second"], "beside": total @ weights["third"]}
    recorded = VectorSet(
        {"batch": 5},
        {"x": x},
        {name: item.astype(np.float32) for name, item in known.items()},
        (),
        (),
    )
    info = TensorInfo("x", "float32", ("batch", WIDTH))
    manifest = replace(
        without_layers(),
        inputs=(info,),
        outputs=tuple(replace(info, name=name) for name in ("behind", "beside")),
        dims={"batch": 5},
    )
    with PackageWriter(output) as writer:
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        onnx.save(model, writer.path("model.onnx"))
        return finish_true(writer, manifest, [recorded])


def places(package: OnnxPackage) -> tuple[set[str], set[str]]:
    """Return the nodes of the interval, and those whose faults do not show."""
    model = ForcedModel(package, {})
    judge, graph = VariantJudge(model, package.vectors, BUILT_IN_POLICY), graph_of(model)
    found = checkpoints(judge.judge(model), measure_reactions(judge, model), "float32")
    interval = find_interval(graph, found)
    exact = [item for item in found if item.exact]
    assert [item.what for item in exact] == ["output 'behind'"]
    unseen = BlindSpots(judge, model, graph, interval.before, exact).find(interval.nodes)
    names = [{graph.nodes[index].name for index in item} for item in (interval.nodes, unseen)]
    return names[0], names[1]


def test_what_a_norm_hides_is_not_seen_behind_it(tmp_path: Path):
    """Neither a factor of the sum nor a number added to all of a term of it shows behind the norm.

    What is done to `first` is neither, once it is mixed.
    """
    nodes, unseen = places(write(tmp_path / "wrong", scale=1.001))
    assert nodes == {"beside"}
    assert unseen == {"scaled", "sum", "mixed"}


def test_what_could_not_be_tried_is_not_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checkpoint, "MOST_TRIED", 1)
    _, unseen = places(write(tmp_path / "wrong", scale=1.001))
    assert unseen == {"scaled", "sum", "mixed", "first"}


@pytest.mark.parametrize(("fault", "expected"), [("", [1, -3, 1e9]), ("scale", [1.5, -4.5, 1.5e9])])
def test_value_is_scaled(fault: str, expected: list[float]):
    assert made([1, -3, 1e9], fault) == pytest.approx(expected)


def test_value_is_shifted_by_a_share_of_its_size():
    assert made([1, -3, 2], "shift") == pytest.approx([2, -2, 3])


def test_value_is_moved_at_random_and_zeros_stay():
    moved = np.asarray(made([1.0, 0.0, 4.0], "noise"))
    assert moved[1] == 0
    assert (np.abs(moved - [1, 0, 4]) <= [0.5, 0, 2]).all()
    assert moved[0] != 1


def made(values: list[float], fault: str) -> list[float]:
    import onnxruntime as ort

    x = np.asarray(values, np.float32)
    graph = onnx.parser.parse_graph("g (float[n] x) => (float[n] y) { y = Identity(x) }")
    _add_faults(graph, "y")
    opsets = [helper.make_opsetid("", 20)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    steps = {name: np.asarray(0.5 if name == f"moh.{fault}" else 0, np.float32) for name in _FAULTS}
    (y,) = session.run(["y"], {"x": x, **steps})
    return y.tolist()
