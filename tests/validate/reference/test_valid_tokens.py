"""What is computed for padding is not compared, and only that."""

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
from moh_deploy.package import (
    CacheBuffer,
    CachesInPlace,
    OnnxPackage,
    PackageWriter,
    TensorInfo,
    VectorSet,
)
from moh_deploy.report.document import About
from moh_deploy.system.npz import BFLOAT16, Array, write_npz
from moh_deploy.validate.compare.parity_report import ParityReport
from moh_deploy.validate.reference.valid_tokens import (
    ValidTokens,
    inner_places,
    mask_like,
    output_view,
    token_view,
    valid_keys,
)
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


@pytest.mark.parametrize(
    ("dims", "shape", "counted"),
    [
        (("batch", "seq", 4), (2, 2, 4), [[1, 0], [0, 0]]),  # the last two of three tokens
        (("batch", "total", 4), (2, 3, 4), [[1, 1, 0], [1, 0, 0]]),
        (("batch", "past + seq", 4), (2, 3, 4), [[1, 1, 0], [1, 0, 0]]),
        (("batch", "past + 1", 4), (2, 3, 4), [[1, 1, 1], [1, 1, 1]]),
        (("batch", "past", 4), (2, 1, 4), [[1], [1]]),
    ],
)
def test_tokens_behind_a_cache_are_the_last_ones_of_the_mask(
    dims: tuple[int | str, ...], shape: tuple[int, ...], counted: list[list[int]]
):
    valid = ValidTokens("mask", MASK != 0, ("batch", "total"), new_tokens="seq")
    expected = np.repeat(np.array(counted, bool)[:, :, None], 4, 2)
    np.testing.assert_array_equal(inner_places(valid, dims, shape), expected)
    view = output_view(valid, [TensorInfo("y", "float32", dims)], {"y": shape})
    np.testing.assert_array_equal(view.places("y", shape), expected)


@pytest.mark.parametrize(
    ("new_tokens", "left_out"),
    [("seq", [[0, 2], [1, 1], [1, 2]]), (None, [])],  # None: the places of the tokens are unknown
)
def test_places_of_padding_in_a_cache_in_place_are_not_compared(
    new_tokens: str | None, left_out: list[list[int]]
):
    present = TensorInfo("present", "float32", ("batch", 2, "buffer", 4))
    caches = CachesInPlace((CacheBuffer("past", "present", 2),), "total - seq", "seq")
    manifest = replace(MANIFEST, outputs=(present,), layers=(), caches=caches)
    valid = ValidTokens("mask", MASK != 0, ("batch", "total"), new_tokens=new_tokens)
    found = VectorSet({}, {}, {"present": np.zeros((2, 2, 5, 4), np.float32)}, (), ())
    places = token_view(valid, manifest, found).places("present", (2, 2, 5, 4))
    assert np.argwhere(~places[:, 0, :, 0]).tolist() == left_out
    assert places[:, :, 3:].all()  # no token is there: it stays as it was given


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


def verify(root: Path, valid_tokens: str | None = None, *inputs: Path) -> ParityReport:
    return moh_deploy.verify(root, inputs=inputs, valid_tokens=valid_tokens, kernels="off")


def garbage_in_padding(found: VectorSet) -> None:
    """Plant what padding may hold: NaN, other heads, margins that excuse nothing."""
    found.outputs["y"][PADDED] = np.nan
    found.gates[0][PADDED] = np.nan
    found.margins[0][PADDED] = np.nan


def test_garbage_in_padding_is_accepted_with_the_mask_and_refused_without(tmp_path: Path):
    root = write_masked(tmp_path / "package", garbage_in_padding).root
    report = verify(root, "mask")
    report.raise_if_unequal()
    assert (report.tokens.tokens, report.tokens.left_out) == (6, 3)
    assert report.layers[0].decisions == 3 * 4
    assert not report.layers[0].forced
    assert report.outputs[0].elements == 3 * 8
    assert report.statistics.head_loads[0].tokens == 3
    assert report.notes == ("3 of 6 tokens are padding by 'mask', and were not compared.",)
    for text in (as_junit(report, "m"), as_page(report, About("m"))):
        assert text.count("3 of 6 tokens are padding") == 1
    assert not verify(root).equal


def test_ties_of_valid_tokens_are_told_by_scores_that_the_reference_alone_knows(tmp_path: Path):
    """Nothing says which value of this graph its heads are chosen by."""

    def scores(found: VectorSet) -> VectorSet:
        return replace(found, scores=(found.inputs["x"] @ gate_weight(),))

    four = np.array([[1, 1, 1], [1, 0, 0]], np.int64)
    root = write_masked(tmp_path / "package", scores, four).root
    verify(root, "mask").raise_if_unequal()


def test_option_wins_over_the_mask_that_a_package_names(tmp_path: Path):
    root = write_masked(tmp_path / "package", garbage_in_padding, named="mask").root
    named = verify(root)
    named.raise_if_unequal()
    assert named.notes == ("3 of 6 tokens are padding by 'mask', and were not compared.",)
    assert OnnxPackage.open(root).manifest.valid_tokens == "mask"
    whole = verify(root, "all")
    assert (whole.equal, whole.tokens) == (False, None)
    given = {**vectors().inputs, "mask": MASK, "other": np.ones_like(MASK)}
    write_npz(tmp_path / "user.npz", given)
    report = verify(root, "other", tmp_path / "user.npz")
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
        padding = next(item for item in probed.results if item.case.startswith("padding only"))
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
    report = verify(root, "mask")
    with pytest.raises(ValidationError):
        report.raise_if_unequal()
    assert re.search(where, " ".join(report.reasons))


def test_nothing_but_padding_is_no_data_and_fails(tmp_path: Path):
    root = write_masked(tmp_path / "package", nan_output, np.zeros((2, 3), np.int64)).root
    report = verify(root, "mask")
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
    report = verify(tmp_path / "package", "valid", tmp_path / "user.npz")
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
        verify(tmp_path / "package", "valid", tmp_path / "user.npz")
    # Recorded runs have masks among their inputs alone.
    with pytest.raises(ConfigError, match=r"'valid', which recorded run 0 .* does not hold"):
        verify(tmp_path / "package", "valid")


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


FIXED = ("batch", 3)


@pytest.mark.parametrize(
    ("shape", "sizes", "dims", "expected"),
    [
        (("batch", "seq", 8), (2, 3, 8), NAMED, [[0, 1], [0, 0, 0], [0, 1, 0], [1, 0, 0]]),
        # A cache of keys [B, H, S, D].
        (
            ("batch", 4, "seq", 8),
            (2, 4, 3, 8),
            NAMED,
            [[0, 2], [0, 0, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0]],
        ),
        (("seq", "batch"), (3, 2), NAMED, [[0, 1], [0, 0], [0, 1], [1, 0]]),
        # Classes as many as tokens are not taken for them, nor channels.
        (("batch", 3), (2, 3), NAMED, None),
        (("batch", 3), (2, 3), FIXED, None),
        (("batch", 3), (2, 3), None, None),
        (("batch", 3, 8), (2, 3, 8), FIXED, [[0, 1], [0, 0, 0], [0, 1, 0], [1, 0, 0]]),
        (("batch", 3, 4, 4), (2, 3, 4, 4), FIXED, None),
        (("batch", "seq"), (2, 3), None, [[0, 1], [0, 0], [0, 1], [1, 0]]),
        # A reference with more axes than its output is compared as it is.
        *(
            (shape, (2, 3), dims, None)
            for dims in (NAMED, FIXED, None)
            for shape in ((), NAMED[:1])
        ),
    ],
)
def test_token_axes_are_found_by_their_names_or_in_common_forms(
    shape: tuple[int | str, ...],
    sizes: tuple[int, ...],
    dims: tuple[int | str, ...] | None,
    expected: list[list[int]] | None,
):
    assert selected(shape, sizes, dims=dims) == expected


def test_outputs_without_tokens_are_compared_but_for_samples_of_padding_alone(monkeypatch):
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
        found = verify(half, valid_tokens, tmp_path / "user.npz").outputs[0].floor
        assert found is not None
        return found

    whole = dict(np.load(tmp_path / "user.npz"))
    assert floor("valid") < 1
    write_npz(tmp_path / "user.npz", {"x": whole["x"]})
    assert floor(None) > 1


VALID = np.array([[True, True, False], [True, False, False]])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, BFLOAT16])
@pytest.mark.parametrize("lowest", [-np.inf, -30000.0])
@pytest.mark.parametrize("between", [(), (1,), (4, 5), (1, 3)])
def test_mask_that_is_made_says_what_it_was_made_of(
    dtype: type, lowest: float, between: tuple[int, ...]
):
    like = np.full((1, *between, 7), lowest).astype(dtype)
    if like.ndim == 2:
        assert (mask_like(VALID, like) == VALID.astype(dtype)).all()
        return
    made = mask_like(VALID, like)
    assert (made.shape, made.dtype) == ((2, *between, 3), like.dtype)
    assert (made.astype(np.float64).min() == like.astype(np.float64).min()).all()
    found = valid_keys(made)
    assert isinstance(found, np.ndarray)
    assert (found == VALID).all()


@pytest.mark.parametrize("shape", [(0, 1, 1, 3), (2, 1, 3, 0)])
def test_mask_may_be_empty(shape: tuple[int, ...]):
    like = np.zeros(shape, np.float32)
    found = valid_keys(like)
    assert isinstance(found, np.ndarray)
    assert found.shape == (shape[0], shape[-1])
    assert mask_like(found, like).shape == shape


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (np.full((1, 1, 1, 2), 0.5), "it holds 0.5, and not only 0"),
        (np.full((1, 1, 1, 2), np.nan), "it holds nan, and not only 0"),
        (np.triu(np.full((1, 1, 3, 3), -np.inf), 1), "it hides other keys from one query than"),
        (np.zeros((2, 1, 0, 3)), "it has no query"),
    ],
)
def test_mask_that_does_not_tell_which_tokens_are_valid(mask: Array, reason: str):
    found = valid_keys(np.nan_to_num(mask, nan=np.nan, neginf=-np.inf))
    assert isinstance(found, str)
    assert found.startswith(reason)
