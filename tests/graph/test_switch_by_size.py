"""Nodes that depend on sizes: both branches run, at the sizes they are meant for, and no others."""

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from moh_deploy.errors import PackageError
from moh_deploy.graph.choose_layers import choose_layers, ops_of
from moh_deploy.ops.op_names import base_domain
from moh_deploy.package import LayerInfo, at_sizes, with_choices
from tests.graph.models import content, node, run_three_layers, three_layers, value
from tests.handmade_package import LAYER

LAYERS = [replace(LAYER, path=f"blocks.{i}", node=f"attention {i}") for i in range(3)]


def chosen(**choices: str) -> tuple[LayerInfo, ...]:
    """Return the layers as `blocks.0[s<=4]=dense` and the like have them."""
    return with_choices(LAYERS, choices, dims=["b", "s", "past"])


def marked(built: ir.Model) -> onnx.ModelProto:
    """Let the bodies of moh.dense return 0 in place of attention: it shows in the outputs."""
    proto = ir.to_proto(built)
    for function in proto.functions:
        if base_domain(function.domain) == "moh.dense":
            last = next(node for node in function.node if node.output[0] == function.output[0])
            last.output[0] = "not returned"
            zero = onnx.helper.make_node("Sub", ["not returned"] * 2, [function.output[0]])
            function.node.append(zero)
    return proto


def is_dense(built: ir.Model, batch: int, seq: int) -> bool:
    return not run_three_layers(marked(built), batch, seq).any()


@pytest.mark.parametrize(
    ("where", "dense", "sparse"),
    [
        ("s<=4", [(1, 4), (9, 1)], [(1, 5), (2, 9)]),
        ("b*s<=12", [(3, 4), (12, 1)], [(13, 1), (2, 7)]),
        ("b<=1", [(1, 9)], [(2, 1)]),
    ],
)
def test_boundary_is_exact(where: str, dense: list[tuple[int, int]], sparse: list[tuple[int, int]]):
    built = three_layers()
    assert choose_layers(built, chosen(**{f"blocks.1[{where}]": "dense"}))
    assert all(is_dense(built, *sizes) for sizes in dense)
    assert not any(is_dense(built, *sizes) for sizes in sparse)


def test_outputs_do_not_depend_on_the_branch():
    built = three_layers()
    choose_layers(built, chosen(**{"all[s<=4]": "dense"}))
    for sizes in ((2, 3), (2, 5)):
        expected = run_three_layers(ir.to_proto(three_layers()), *sizes)
        found = run_three_layers(ir.to_proto(built), *sizes)
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_first_range_that_sizes_are_in_decides():
    built = three_layers()
    ranges = {"all[s<=6]": "dense", "all[s<=2]": "sparse", "all[b<=1]": "dense", "all": "sparse"}
    choose_layers(built, chosen(**ranges))
    for (batch, seq), dense in {
        (3, 2): False,
        (1, 2): False,
        (3, 3): True,
        (3, 6): True,
        (1, 7): True,
        (2, 7): False,
    }.items():
        assert is_dense(built, batch, seq) == dense


def test_dimension_is_solved_for_where_inputs_have_only_expressions_of_it():
    built = three_layers(("b", "2*past+1"))
    choose_layers(built, chosen(**{"all[past<=3]": "dense"}))
    assert is_dense(built, 1, 7)
    assert not is_dense(built, 1, 9)


def test_rule_of_a_dimension_that_no_input_has_is_refused():
    with pytest.raises(PackageError, match="no input with the dimension 'past'"):
        choose_layers(three_layers(), chosen(**{"all[past<=3]": "dense"}))


def test_condition_is_computed_once_for_all_layers():
    built = three_layers()
    choose_layers(built, chosen(**{"all[b*s<=4]": "dense"}))
    kinds = [node.op_type for node in built.graph]
    assert kinds.count("If") == 3
    assert kinds.count("LessOrEqual") == kinds.count("Squeeze") == 1


def test_range_that_changes_nothing_costs_nothing():
    built, untouched = three_layers(), content(three_layers())
    assert not choose_layers(built, chosen(**{"all[s<=4]": "sparse", "all": "sparse"}))
    assert content(built) == untouched


def test_nodes_come_back_and_nothing_is_left_of_where_they_were():
    untouched = content(three_layers())
    built = three_layers()
    by_size = chosen(
        **{"blocks.0[s<=4]": "dense", "blocks.2[b*s<=9]": "dense", "blocks.1": "dense"}
    )
    assert choose_layers(built, by_size)
    once = content(built)
    assert not choose_layers(built, by_size)
    assert content(built) == once
    assert choose_layers(built, chosen(all="sparse"))
    assert content(built) == untouched


def test_branches_that_are_gone_read_nothing_any_more():
    """Who reads the gates decides, in other passes, what they may do with them."""
    built = three_layers()
    choose_layers(built, chosen(**{"all[s<=4]": "dense"}))
    choose_layers(built, chosen(all="sparse"))
    for given in built.graph.inputs:
        assert all(user.graph is built.graph for user, _ in given.uses())


def test_way_to_a_choice_does_not_show():
    direct, roundabout = three_layers(), three_layers()
    wanted = chosen(**{"all[s<=4]": "dense", "blocks.1": "dense"})
    choose_layers(direct, wanted)
    for choices in ({"all": "dense"}, {"all[b<=2]": "dense"}, {"blocks.0[s<=1]": "dense"}):
        choose_layers(roundabout, chosen(**choices))
    choose_layers(roundabout, wanted)
    assert content(direct) == content(roundabout)


def test_written_model_is_read_back_the_same():
    built = three_layers()
    choose_layers(built, chosen(**{"all[s<=4]": "dense"}))
    read = ir.from_proto(ir.to_proto(built))
    assert not choose_layers(read, chosen(**{"all[s<=4]": "dense"}))
    choose_layers(read, chosen(all="sparse"))
    assert content(read) == content(three_layers())


def test_one_ranges_choice_is_had_without_any_branch():
    built = three_layers()
    layers = chosen(**{"all[s<=4]": "dense"})
    choose_layers(built, layers)
    choose_layers(built, at_sizes(layers, {"b": 1, "s": 4}))
    assert [node.domain for node in built.graph] == ["moh.dense", "moh.dense.2", "moh.dense"]
    assert ops_of(built) == {"moh.dense::MoHAttention": 1, "moh.dense.2::MoHAttention": 1}
    choose_layers(built, at_sizes(layers, {"b": 1, "s": 5}))
    assert content(built) == content(three_layers())


def test_ifs_of_others_are_left_alone():
    built = three_layers()
    flag, y = value("flag", [], ir.DataType.BOOL), value("y", ["b", "s", 8])
    branches = []
    for index in range(2):
        out = value(f"branch {index}", ["b", "s", 8])
        branches.append(ir.Graph([], [out], nodes=[node("Relu", [built.graph.outputs[0]], out)]))
    attributes = {"then_branch": branches[0], "else_branch": branches[1]}
    built.graph.inputs.append(flag)
    built.graph.append(node("If", [flag], y, attributes))
    built.graph.outputs[0] = y
    before = content(built)
    choose_layers(built, chosen(**{"all[s<=4]": "dense"}))
    choose_layers(built, chosen(all="sparse"))
    assert content(built) == before
