from dataclasses import replace
from pathlib import Path

import pytest

from moh_deploy.package import LayerInfo, with_choices
from moh_deploy.runtime.layer_runs import LayerImpl, LayerRun, layer_runs
from moh_deploy.runtime.layers_text import constant_gates, layer_table, runs_as, runs_text
from moh_deploy.runtime.open_runner import open_runner
from tests.handmade_package import LAYER, write_package
from tests.two_layers import FIRST, LAYERS, ROUTER, SECOND

MIXED: dict[str, LayerImpl] = {FIRST: "kernel", SECOND: "function", ROUTER: "kernel"}


def runs_of(
    layers: tuple[LayerInfo, ...], impl: dict[str, LayerImpl], *routers: str | None
) -> tuple[LayerRun, ...]:
    return layer_runs(layers, impl, routers=routers)


def test_each_layer_has_what_runs_its_own_nodes():
    assert runs_of(LAYERS, MIXED, None, ROUTER) == (
        LayerRun("blocks.0.attn", "kernel", None),
        LayerRun("blocks.1.attn", "function", "kernel"),
    )


def test_layer_that_was_not_replaced_may_have_a_router_that_was():
    layer = replace(LAYER, replaced=False, node=None)
    assert runs_of((layer,), MIXED, ROUTER) == (LayerRun("blocks.0.attn", None, "kernel"),)


def test_package_without_layers_has_no_runs():
    assert runs_of((), {}) == ()


PROJECTED = replace(LAYER, query_projection="q", output_projection="o")
NODES: dict[str, LayerImpl] = {FIRST: "kernel", "q": "kernel", "o": "kernel"}


@pytest.mark.parametrize(
    ("choice", "impl", "expected"),
    [
        ("projected", {}, ("kernel", "kernel")),
        (None, {}, ("kernel", "kernel")),
        ("sparse", {"q": "dense", "o": "dense"}, ("kernel", "dense")),
        ("dense", {FIRST: "dense", "q": "dense", "o": "dense"}, ("dense", "dense")),
        # One of the two without a kernel: the pair does not count as running on kernels.
        ("projected", {"q": "function"}, ("kernel", "function")),
        ("projected", {"o": "function"}, ("kernel", "function")),
    ],
)
def test_projections_are_told_apart_from_attention(
    choice: str, impl: dict[str, LayerImpl], expected: tuple[str, str]
):
    (run,) = runs_of((replace(PROJECTED, choice=choice),), NODES | impl, None)
    assert (run.runs_as, run.projections_run_as) == expected


BY_SIZE = with_choices([LAYER], {"all[seq<=64]": "dense"}, dims=["seq"])


def test_layer_that_depends_on_sizes_says_so():
    (run,) = runs_of(BY_SIZE, MIXED, None)
    assert run == LayerRun("blocks.0.attn", "kernel", None, by_size="dense if seq<=64, else sparse")
    assert runs_as(run) == "kernel; dense if seq<=64, else sparse"
    assert runs_text([run]).endswith(
        "router in plain operators, by choice dense if seq<=64, else sparse"
    )


# Of a session.


def test_model_without_layers_or_without_manifest_has_no_layer_runs(tmp_path: Path):
    package = write_package(tmp_path / "package", with_layer=False)
    assert open_runner(package).describe().layer_runs == ()
    other = write_package(tmp_path / "other")
    assert open_runner(other.model_path).describe().layer_runs == ()


CONSTANT = replace(LAYER, path="decoder.0", router="constant", reason=None, active_share=0.25)


@pytest.mark.parametrize(
    ("closed_heads", "said"),
    [
        ((), ""),
        ((2,), ", for every query those of head 2"),
        ((0, 3), ", for every query those of heads 0, 3"),
    ],
)
def test_what_constant_gates_close_is_said(closed_heads: tuple[int, ...], said: str):
    (line,) = constant_gates([LAYER, replace(CONSTANT, closed_heads=closed_heads)])
    closed = "75.0 % of the (query, head) pairs are closed at export"
    assert line == f"decoder.0: no input changes its gates; {closed}{said}"


ALWAYS = replace(CONSTANT, closed_heads=(0, 3))


@pytest.mark.parametrize(
    ("layers", "keep"),
    [
        ([ALWAYS, replace(ALWAYS, closed_heads=(1,))], CONSTANT.num_heads - 1),
        ([replace(ALWAYS, closed_heads=tuple(range(CONSTANT.num_heads)))], 1),
        ([ALWAYS, CONSTANT], None),  # a layer uses all of its heads for some query
        ([ALWAYS, LAYER], None),  # `prune` would cut heads that inputs choose, too
        ([], None),
    ],
)
def test_heads_that_are_closed_for_every_query_lead_to_prune(
    layers: list[LayerInfo], keep: int | None
):
    commands = [line for line in constant_gates(layers) if "prune" in line]
    told = f"`moh-deploy prune PACKAGE --keep {keep} -o OUTPUT` cuts the weights of heads that are"
    assert commands == ([] if keep is None else [f"{told} closed for every query."])


def test_constant_gates_are_made_by_no_operator():
    (row,) = layer_table("", [CONSTANT], "replaced", [True]).rows
    assert "constant" in row
    run = LayerRun("decoder.0", "kernel", None, constant_gates=True)
    assert runs_text([run]) == "1 MoH layer: attention on a kernel, gates constant"
