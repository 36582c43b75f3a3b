from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import moh_deploy
from moh_deploy.package import OnnxPackage, PackageWriter, TensorInfo
from moh_deploy.validate.bisection.checkpoint import Checkpoint
from moh_deploy.validate.bisection.divergence import InnerValue, largest_step, node_errors
from moh_deploy.validate.bisection.locate import Divergence, Interval, find_interval
from moh_deploy.validate.bisection.places import ModelGraph
from tests.handmade_package import MANIFEST, model, vectors
from tests.nightly import sampled
from tests.true_manifest import finish_true

GRAPH = """
g (float[n] x) => (float[n] gates_0, float[n] gates_1, float[n] y)
{ x0 = Neg(x)
  gates_0 = Exp(x0)
  x1 = Abs(x0)
  gates_1 = Exp(x1)
  x2 = Relu(x1)
  y = Exp(x2) }
"""


def graph() -> ModelGraph:
    return ModelGraph(onnx.parser.parse_graph(GRAPH))


def interval(**said: str) -> Interval:
    """Find it by what is said of each recorded value: wrong, weak, exact."""
    checkpoints = [
        Checkpoint(name, name, agrees=word != "wrong", exact=word == "exact")
        for name, word in said.items()
    ]
    found = find_interval(graph(), checkpoints)
    assert found is not None
    return found


def made(values: frozenset[int]) -> set[str]:
    return {graph().nodes[index].output[0] for index in values}


def test_it_lies_between_the_last_exact_value_and_the_first_wrong_one():
    found = interval(gates_0="exact", gates_1="wrong", y="wrong")
    assert [item.what for item in found.after] == ["gates_0"]
    assert found.before.what == "gates_1"
    assert made(found.nodes) == {"x1", "gates_1"}
    assert made(found.alone) == {"x1"}


def test_value_that_agrees_and_is_not_exact_proves_nothing():
    found = interval(gates_0="exact", gates_1="weak", y="wrong")
    assert made(found.nodes) == {"x1", "x2", "y"}
    found = interval(gates_0="weak", gates_1="weak", y="wrong")
    assert found.after == ()
    assert made(found.nodes) == {"x0", "x1", "x2", "y"}


def test_exact_value_behind_a_wrong_one_leaves_what_leads_to_that_alone():
    found = interval(gates_0="exact", gates_1="wrong", y="exact")
    assert made(found.nodes) == {"gates_1"}
    assert [item.what for item in found.after] == ["y"]


def test_of_two_faults_one_is_in_the_interval():
    """One node cannot make gates_0 and y wrong if gates_1 is right: no node is named for both."""
    found = interval(gates_0="wrong", gates_1="exact", y="wrong")
    assert made(found.nodes) == {"gates_0"}
    assert found.alone == frozenset()


def test_without_anything_wrong_there_is_none():
    checkpoints = [Checkpoint(name, name, agrees=True, exact=True) for name in ("gates_0", "y")]
    assert find_interval(graph(), checkpoints) is None


def test_wrong_value_whose_nodes_are_all_proven_right_disproves_the_proof():
    """x1 leads to y, which is right, and is itself recorded as wrong."""
    checkpoints = [Checkpoint("x1", "x1", agrees=False), Checkpoint("y", "y", True, exact=True)]
    found = find_interval(graph(), checkpoints)
    assert found.after == ()
    assert made(found.nodes) == {"x0", "x1"}


Change = Callable[[onnx.ModelProto], None]

SHAPE = {"batch": 8, "seq": 8}
SPECS = (*MANIFEST.outputs, TensorInfo("top", "int64", ("batch", "seq")))


def float_weight(name: str, value: float) -> onnx.TensorProto:
    return numpy_helper.from_array(np.float32([value]), name)


def branching() -> onnx.ModelProto:
    """Return y = heads * 2 in a branch, if the sum of x is not very low; and where y is largest."""
    content = model()
    graph = content.graph
    del graph.node[-1]
    y, e = (helper.make_tensor_value_info(item, TensorProto.FLOAT, None) for item in "ye")
    double = helper.make_node("Mul", ["heads", "two"], ["y"], name="double")
    same = helper.make_node("Identity", ["heads"], ["e"], name="same")
    then = helper.make_graph([double], "then", [], [y], [float_weight("two", 2.0)])
    otherwise = helper.make_graph([same], "otherwise", [], [e])
    graph.node.extend(
        [
            helper.make_node("ReduceSum", ["x"], ["sum"], name="sum", keepdims=0),
            helper.make_node("Greater", ["sum", "low"], ["high"], name="is_high"),
            helper.make_node(
                "If", ["high"], ["y"], name="choose", then_branch=then, else_branch=otherwise
            ),
            helper.make_node("ArgMax", ["y"], ["top"], name="top", axis=-1, keepdims=0),
        ]
    )
    graph.initializer.append(float_weight("low", -1e9))
    top = helper.make_tensor_value_info("top", TensorProto.INT64, ["batch", "seq"])
    graph.output.append(top)
    return content


def write(output: Path, change: Change | None = None) -> OnnxPackage:
    content, known = branching(), vectors(batch=8, seq=8)
    if change is not None:
        change(content)
    y = (known.outputs["y"] * 2).astype(np.float32)
    known = replace(known, outputs={"y": y, "top": y.argmax(-1)})
    with PackageWriter(output) as writer:
        onnx.save(content, writer.path("model.onnx"))
        return finish_true(writer, replace(MANIFEST, outputs=SPECS, dims=SHAPE), [known])


def node(content: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(item for item in content.graph.node if item.name == name)


def branch_weight(content: onnx.ModelProto) -> None:
    (then,) = [item.g for item in node(content, "choose").attribute if item.name == "then_branch"]
    then.initializer[0].CopyFrom(float_weight("two", 2.5))


def nan_weight(content: onnx.ModelProto) -> None:
    content.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(np.full((8, 4), np.nan, np.float32), "weight")
    )


def condition(content: onnx.ModelProto) -> None:
    content.graph.initializer[-1].CopyFrom(float_weight("low", 1e9))


def integers(content: onnx.ModelProto) -> None:
    node(content, "top").op_type = "ArgMin"


def rounding_cast(content: onnx.ModelProto) -> None:
    node(content, "blocks.0.attn/moh").output[0] = "exact"
    nodes = list(content.graph.node)
    place = 1 + [item.name for item in nodes].index("blocks.0.attn/moh")
    nodes[place:place] = [
        helper.make_node("Cast", ["exact"], ["half"], name="to_half", to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["half"], ["heads"], name="to_float", to=TensorProto.FLOAT),
    ]
    copies = [onnx.NodeProto.FromString(item.SerializeToString()) for item in nodes]
    del content.graph.node[:]
    content.graph.node.extend(copies)


def function_body(content: onnx.ModelProto) -> None:
    (body,) = content.functions
    made = body.output[0]
    last = next(item for item in body.node if made in item.output)
    last.output[list(last.output).index(made)] = "unscaled"
    factor = numpy_helper.from_array(np.float32(1.3))
    body.node.append(helper.make_node("Constant", [], ["factor"], value=factor))
    body.node.append(helper.make_node("Mul", ["unscaled", "factor"], [made]))


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("kinds") / "right").root


def located(change: Change, reference: Path, tmp_path: Path) -> Divergence:
    wrong = write(tmp_path / "wrong", change).root
    report = moh_deploy.bisect(wrong, reference=reference, kernels="off", target=1e-5)
    assert report.divergence is not None
    return report.divergence


@sampled(3)
@pytest.mark.parametrize(
    ("change", "name", "difference"),
    [
        (branch_weight, "choose", "in its then_branch, Mul 'double': weight 'two' differs by up"),
        (nan_weight, "router", "weight 'weight' holds NaN where the other has a number"),
        (condition, "is_high", "weight 'low' differs by up to 2 of its largest value"),
        (integers, "top", "it is ArgMin, in the reference ArgMax"),
        (rounding_cast, "to_half", "the reference has no such cast"),
        (function_body, "blocks.0.attn/moh", "its function body differs"),
    ],
)
def test_node_is_named_and_what_is_different_about_it(
    change: Change, name: str, difference: str, right: Path, tmp_path: Path
):
    found = located(change, right, tmp_path)
    assert found.first.place.node == name
    assert found.first.before == 0
    assert difference in found.differences[0]


@pytest.mark.parametrize(("rounding", "counts"), [(0.0, True), (1e-7, False)])
def test_integers_count_only_where_what_is_read_is_the_same(rounding: float, counts: bool):
    """Rounding may have decided otherwise."""
    graph = ModelGraph(branching().graph)
    values = {
        "y": InnerValue("y", rounding, 1.0, (8, 8), finite=True),
        "top": InnerValue("top", 3.0, 7.0, (8,), finite=True, is_float=False),
    }
    found = {error.place.node for error in node_errors(graph, values).values()}
    assert ("top" in found) == counts


def test_branch_reads_what_the_nodes_in_it_read():
    """An error that comes from before is none of the If."""
    graph = ModelGraph(branching().graph)
    off = {name: InnerValue(name, 0.1, 1.0, (8, 8), finite=True) for name in ("heads", "y")}
    (of_if,) = [error for error in node_errors(graph, off).values() if error.place.node == "choose"]
    assert (of_if.before, of_if.growth) == (0.1, 0.0)


def test_right_package_with_branches_and_integers_diverges_nowhere(right: Path):
    assert not moh_deploy.bisect(right, kernels="off").diverges


def test_nothing_that_adds_nothing_is_named():
    graph = ModelGraph(branching().graph)
    errors = node_errors(graph, {"y": InnerValue("y", 0.0, 1.0, (8, 8), finite=True)})
    assert largest_step(errors, range(len(graph.nodes))) is None
