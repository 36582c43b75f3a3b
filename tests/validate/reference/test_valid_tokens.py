"""What is computed for padding is not compared, and only that."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import moh_deploy
from moh_deploy.errors import ConfigError, ValidationError
from moh_deploy.package import OnnxPackage, PackageWriter, TensorInfo, VectorSet
from moh_deploy.report.document import About
from moh_deploy.system.npz import Array, write_npz
from moh_deploy.validate.reference.valid_tokens import ValidTokens, inner_places, token_view
from tests.handmade_package import MANIFEST, gate_weight, model, vectors, write_package
from tests.nightly import nightly, one_in, sampled
from tests.report.shown import as_junit, as_page
from tests.routed_package import SEQ, WIDTH, write_routed
from tests.true_manifest import finish_true

MASK = np.array([[1, 1, 0], [1, 0, 0]], np.int64)
PADDED = MASK == 0

Change = Callable[[VectorSet], VectorSet | None]


@pytest.mark.parametrize(
    ("dims", "shape", "left_out"),
    [
        (("batch", "seq", 4), (2, 3, 4), 3 * 4),
        (("seq", 4, "batch"), (3, 4, 2), 3 * 4),
        (("batch", 4, "seq", "seq"), (2, 4, 3, 3), 4 * (5 + 8)),  # queries and keys
        (("batch", "batch", "seq"), (2, 2, 3), 0),
        (("seq", "seq"), (3, 3), 0),
        (("batch", "seq2", 4), (2, 3, 4), 0),
        (("batch", "seq"), (2, 4), 0),
    ],
)
def test_inner_values_count_where_query_and_key_are_valid(
    dims: tuple[int | str, ...], shape: tuple[int, ...], left_out: int
):
    valid = ValidTokens("mask", MASK != 0, ("batch", "seq"))
    places = inner_places(valid, dims, shape)
    assert (places.shape, int((~places).sum())) == (shape, left_out)


def test_axes_of_a_fixed_size_have_to_be_there_once():
    valid = ValidTokens("mask", MASK != 0, (2, 3))
    assert (~inner_places(valid, (2, 3, 4), (2, 3, 4))).sum() == 3 * 4
    assert inner_places(valid, (2, 3, 3), (2, 3, 3)).all()


def write_masked(
    output: Path, change: Change, mask: Array = MASK, *, named: str | None = None
) -> OnnxPackage:
    """Write a right package with an input `mask`, and recorded vectors in which this is changed.

    Args:
        named: What its manifest names as the mask of valid tokens.
    """
    content = model()
    content.graph.input.append(
        helper.make_tensor_value_info("mask", TensorProto.INT64, ["batch", "seq"])
    )
    found = vectors()
    found = replace(found, inputs={**found.inputs, "mask": mask})
    found = change(found) or found
    info = TensorInfo("mask", "int64", ("batch", "seq"))
    with PackageWriter(output) as writer:
        onnx.save(content, writer.path("model.onnx"))
        inputs = (*MANIFEST.inputs, info)
        manifest = replace(MANIFEST, inputs=inputs, valid_tokens=named)
        return finish_true(writer, manifest, [found])


def garbage_in_padding(found: VectorSet) -> None:
    """Plant what padding may hold: NaN, other heads, margins that excuse nothing."""
    found.outputs["y"][PADDED] = np.nan
    found.gates[0][PADDED] = np.nan
    found.margins[0][PADDED] = np.nan


def test_garbage_in_padding_is_accepted_with_the_mask_and_refused_without(tmp_path: Path):
    root = write_masked(tmp_path / "package", garbage_in_padding).root
    report = moh_deploy.verify(root, valid_tokens="mask", kernels="off")
    report.raise_if_unequal()
    assert report.tokens is not None
    assert (report.tokens.tokens, report.tokens.left_out) == (6, 3)
    assert report.layers[0].decisions == 3 * 4
    assert not report.layers[0].forced
    assert report.outputs[0].elements == 3 * 8
    assert report.statistics.head_loads[0].tokens == 3
    assert report.notes == ("3 of 6 tokens are padding by 'mask', and were not compared.",)
    for text in (as_junit(report, "m"), as_page(report, About("m"))):
        assert text.count("3 of 6 tokens are padding") == 1
    assert not moh_deploy.verify(root, kernels="off").equal


def test_ties_of_valid_tokens_are_told_by_scores_that_the_reference_alone_knows(tmp_path: Path):
    """Nothing says which value of this graph its heads are chosen by."""

    def scores(found: VectorSet) -> VectorSet:
        return replace(found, scores=(found.inputs["x"] @ gate_weight(),))

    four = np.array([[1, 1, 1], [1, 0, 0]], np.int64)
    root = write_masked(tmp_path / "package", scores, four).root
    moh_deploy.verify(root, valid_tokens="mask", kernels="off").raise_if_unequal()


def test_mask_that_a_package_names_is_used_without_an_option(tmp_path: Path):
    root = write_masked(tmp_path / "package", garbage_in_padding, named="mask").root
    report = moh_deploy.verify(root, kernels="off")
    report.raise_if_unequal()
    assert report.notes == ("3 of 6 tokens are padding by 'mask', and were not compared.",)
    assert OnnxPackage.open(root).manifest.valid_tokens == "mask"


def test_option_wins_over_the_mask_that_a_package_names(tmp_path: Path):
    root = write_masked(tmp_path / "package", garbage_in_padding, named="mask").root
    whole = moh_deploy.verify(root, valid_tokens="all", kernels="off")
    assert not whole.equal
    assert whole.tokens is None
    given = {**vectors().inputs, "mask": MASK, "other": np.ones_like(MASK)}
    write_npz(tmp_path / "user.npz", given)
    report = moh_deploy.verify(
        root, inputs=[tmp_path / "user.npz"], valid_tokens="other", kernels="off"
    )
    assert report.tokens is not None
    assert (report.tokens.name, report.tokens.left_out) == ("other", 0)


@sampled(3)
@pytest.mark.parametrize("what", one_in(2, ["bench", "tune", "precision", "probe", "bisect"]))
def test_every_command_leaves_out_what_a_package_says_is_padding(what: str, tmp_path: Path):
    root = write_masked(tmp_path / "package", garbage_in_padding, named="mask").root
    if what == "bench":
        report = moh_deploy.bench(root, min_time=0.01, kernels="off", gates=["p50 < 1000 ms"])
        assert report.passed
    elif what == "tune":
        moh_deploy.tune(root, choose={"all": "dense"})
    elif what == "precision":
        moh_deploy.precision(root, to="float16", output=tmp_path / "half").parity.raise_if_unequal()
        assert OnnxPackage.open(tmp_path / "half").manifest.valid_tokens == "mask"
    elif what == "probe":
        probed = moh_deploy.probe(root, kernels="off")
        padding = next(one for one in probed.results if one.case.startswith("padding only"))
        assert padding.case == "padding only: mask all 0"
    else:
        assert not moh_deploy.bisect(root, kernels="off").diverges
        moh_deploy.precision(root, to="float16", output=tmp_path / "half")
        assert not moh_deploy.bisect(tmp_path / "half", reference=root).diverges


def nan_output(found: VectorSet) -> None:
    found.outputs["y"][0, 1, 2] = np.nan


def wrong_output(found: VectorSet) -> None:
    found.outputs["y"][0, 1, 2] += 1


def other_heads(found: VectorSet) -> None:
    found.gates[0][0, 1] = found.gates[0][0, 1] == 0


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (nan_output, r"the reference is itself NaN at \[0, 1, 2\]"),
        (wrong_output, r"differs by 1 at \[0, 1, 2\]"),
        (other_heads, r"1 of 3 tokens choose other heads, unexplained; token \[0, 1\] chose"),
    ],
)
def test_valid_token_that_differs_is_refused_where_it_stands(
    tmp_path: Path, change: Change, where: str
):
    def plant(found: VectorSet) -> None:
        garbage_in_padding(found)
        change(found)

    root = write_masked(tmp_path / "package", plant).root
    report = moh_deploy.verify(root, valid_tokens="mask", kernels="off")
    with pytest.raises(ValidationError):
        report.raise_if_unequal()
    assert re.search(where, " ".join(report.reasons))


def test_nothing_but_padding_is_no_data_and_fails(tmp_path: Path):
    root = write_masked(tmp_path / "package", nan_output, np.zeros((2, 3), np.int64)).root
    report = moh_deploy.verify(root, valid_tokens="mask", kernels="off")
    (reason,) = report.reasons
    assert reason.startswith("no output holds anything to compare, so nothing is proven. ")
    assert reason.endswith("tokens are padding by 'mask', and were not compared.")
    assert report.layers[0].decisions == 0


@pytest.mark.parametrize("dtype", [np.bool_, np.float32, np.uint8])
def test_member_of_a_users_file_may_say_which_tokens_are_valid(tmp_path: Path, dtype: type):
    write_package(tmp_path / "package")
    found = vectors(seed=9)
    found.outputs["y"][PADDED] = np.nan
    members = {**found.inputs, **found.outputs, "valid": MASK.astype(dtype)}
    write_npz(tmp_path / "user.npz", members)
    report = moh_deploy.verify(
        tmp_path / "package", inputs=[tmp_path / "user.npz"], valid_tokens="valid"
    )
    report.raise_if_unequal()
    assert report.outputs[0].elements == 3 * 8


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.where(PADDED, -np.inf, 0).astype(np.float32), "other values than 0 .* and 1"),
        (MASK[:, None], r"'valid' is int64\[2, 1, 3\], expected a mask .* two axes"),
        (None, "valid tokens are named 'valid', which .* does not hold"),
    ],
)
def test_mask_that_is_none_is_refused(tmp_path: Path, mask: Array | None, message: str):
    write_package(tmp_path / "package")
    members = {} if mask is None else {"valid": mask}
    write_npz(tmp_path / "user.npz", {**vectors().inputs, **members})
    with pytest.raises(ConfigError, match=message):
        moh_deploy.verify(
            tmp_path / "package", inputs=[tmp_path / "user.npz"], valid_tokens="valid"
        )


def test_recorded_runs_have_masks_among_their_inputs_alone(tmp_path: Path):
    write_package(tmp_path / "package")
    with pytest.raises(ConfigError, match=r"'valid', which recorded run 0 .* does not hold"):
        moh_deploy.verify(tmp_path / "package", valid_tokens="valid")


def selected(
    shape: tuple[int | str, ...], sizes: tuple[int, ...], *, dims: tuple[int | str, ...] | None
) -> list[list[int]] | None:
    """Return the axes of an output that a mask is laid over, and the indices that it keeps."""
    spec = TensorInfo("z", "float32", shape)
    manifest = replace(MANIFEST, outputs=(spec,), layers=())
    mask = ValidTokens("mask", MASK.astype(np.bool_), dims and (dims[0], dims[1]))
    found = VectorSet({}, {}, {"z": np.zeros(sizes, np.float32)}, (), ())
    view = token_view(mask, manifest, found)
    chosen = view.selections.get("z")
    if chosen is None:
        return None
    array = np.zeros(sizes)
    kept = chosen.of(array)
    places = [chosen.place((index, *[0] * (kept.ndim - 1))) for index in range(len(kept))]
    return [list(chosen.axes), *places]


NAMED = ("batch", "seq")


def test_token_axes_are_found_by_their_names():
    tokens = [[0, 1], [0, 0, 0], [0, 1, 0], [1, 0, 0]]
    assert selected(("batch", "seq", 8), (2, 3, 8), dims=NAMED) == tokens
    # A cache of keys [B, H, S, D].
    cache = [[0, 2], [0, 0, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0]]
    assert selected(("batch", 4, "seq", 8), (2, 4, 3, 8), dims=NAMED) == cache
    turned = [[0, 1], [0, 0], [0, 1], [1, 0]]
    assert selected(("seq", "batch"), (3, 2), dims=NAMED) == turned


def test_classes_as_many_as_tokens_are_not_taken_for_them():
    assert selected(("batch", 3), (2, 3), dims=NAMED) is None
    assert selected(("batch", 3), (2, 3), dims=("batch", 3)) is None
    assert selected(("batch", 3), (2, 3), dims=None) is None
    assert selected(("batch", 3, 8), (2, 3, 8), dims=("batch", 3)) is not None
    assert selected(("batch", 3, 4, 4), (2, 3, 4, 4), dims=("batch", 3)) is None  # channels
    assert selected(("batch", "seq"), (2, 3), dims=None) is not None


@pytest.mark.parametrize("dims", [NAMED, ("batch", 3), None])
def test_reference_with_more_axes_than_its_output_is_compared_as_it_is(
    dims: tuple[int | str, ...] | None,
):
    assert selected((), (2, 3), dims=dims) is None
    assert selected(("batch",), (2, 3), dims=dims) is None


def test_outputs_without_tokens_are_compared_but_for_samples_of_padding_alone(
    monkeypatch: pytest.MonkeyPatch,
):
    assert selected(("batch", 5), (2, 5), dims=NAMED) is None
    monkeypatch.setitem(globals(), "MASK", np.array([[0, 0, 0], [1, 0, 0]]))
    assert selected(("batch", 5), (2, 5), dims=NAMED) == [[0], [1, 0]]
    assert selected(("classes", 5), (2, 5), dims=NAMED) is None
    monkeypatch.setitem(globals(), "MASK", np.zeros((2, 3)))
    assert selected(("classes", 5), (2, 5), dims=NAMED) == [[]]


@nightly
def test_padding_does_not_raise_the_noise_floor(tmp_path: Path):
    write_routed(tmp_path / "package", batch=20)
    half = tmp_path / "half"
    moh_deploy.precision(tmp_path / "package", to="float16", output=half)
    x = np.random.default_rng(1).standard_normal((2, SEQ, WIDTH)).astype(np.float32)
    x[1] *= 100
    mask = np.array([[1] * SEQ, [0] * SEQ])
    write_npz(tmp_path / "user.npz", {"x": x, "valid": mask})

    def floor(valid_tokens: str | None) -> float:
        files = [tmp_path / "user.npz"]
        report = moh_deploy.verify(half, inputs=files, valid_tokens=valid_tokens, kernels="off")
        found = report.outputs[0].floor
        assert found is not None
        return found

    whole = dict(np.load(tmp_path / "user.npz"))
    assert floor("valid") < 1
    write_npz(tmp_path / "user.npz", {"x": whole["x"]})
    assert floor(None) > 1
