from pathlib import Path

import numpy as np
import onnx
import pytest

from moh_deploy.config.export_config import ExportConfig
from moh_deploy.errors import ConfigError
from moh_deploy.frontend.inputs.example_inputs import example_inputs
from moh_deploy.frontend.load.model import LoadedModel, ModelInput
from moh_deploy.frontend.load.onnx_graph.file import OnnxOriginal, OnnxSource, read_onnx
from tests.frontend.load.onnx_graph.onnx_models import written

TOKENS = """g (int64[batch, seq] ids, float[batch, seq, 2] x) => (float[batch, seq, 2] y)
    <float[5, 2] table = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9}> {
        e = Gather (table, ids)
        y = Add (e, x)
    }"""


def source(text: str, folder: Path) -> OnnxSource:
    return read_onnx(written(text, folder / "model.onnx"))


def inputs_of(source: OnnxSource, config: ExportConfig, **given: object) -> tuple[ModelInput, ...]:
    model = LoadedModel(None, None, "onnx", None, original=OnnxOriginal(source, None))
    return example_inputs(model, config, **given)[1]


def test_examples_are_made_of_types_and_dimensions(tmp_path: Path) -> None:
    ids, x = inputs_of(source(TOKENS, tmp_path), ExportConfig())
    assert (ids.name, ids.dims) == ("ids", {0: "batch", 1: "seq"})
    assert (x.name, x.dims) == ("x", {0: "batch", 1: "seq"})
    # Sizes of their own, so that no two dimensions are equal by chance.
    assert tuple(ids.value.shape) == (2, 3)
    assert tuple(x.value.shape) == (2, 3, 2)


def test_ids_are_rows_of_the_table_that_they_look_up(tmp_path: Path) -> None:
    text = TOKENS.replace("[batch, seq]", "[40, 40]").replace("[batch, seq, 2]", "[40, 40, 2]")
    ids, _ = inputs_of(source(text, tmp_path), ExportConfig())
    assert (int(ids.value.min()), int(ids.value.max())) == (0, 4)


def test_made_ids_are_those_rows_that_their_type_can_name(tmp_path: Path) -> None:
    rows = ", ".join(["1"] * 384)
    text = f"""g (uint8[40, 40] ids) => (float[40, 40] y) <float[384] table = {{{rows}}}> {{
        wide = Cast <to = 7> (ids)
        y = Gather (table, wide)
    }}"""
    (ids,) = inputs_of(source(text, tmp_path), ExportConfig())
    assert 200 < int(ids.value.max()) < 256


def test_dimension_that_follows_from_another_has_a_size(tmp_path: Path) -> None:
    path = written(
        "g (float[n, t] x, float[n, u] z) => (float[n, u] y) { y = Relu (z) }", tmp_path / "m.onnx"
    )
    model = onnx.load(path)
    model.graph.input[1].type.tensor_type.shape.dim[1].dim_param = "2*t - 9"
    onnx.save(model, path)
    x, z = inputs_of(read_onnx(path), ExportConfig())
    assert (z.dims[1], z.value.shape[1]) == ("2*t-9", 2 * x.value.shape[1] - 9)
    assert z.value.shape[1] > 1


MASKED = """g (float[n, 2] x, int64[n, 2] mask) => (float[n, 2] y) {
    m = Cast <to = 1> (mask)
    y = Mul (x, m)
}"""


def test_integers_that_nothing_tells_the_range_of_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"input 'mask' is int64\[n,2\]") as caught:
        inputs_of(source(MASKED, tmp_path), ExportConfig())
    assert "--input 'mask:[...]:int64=0..1'" in str(caught.value.hint)


def test_described_input_has_the_range_and_the_sizes_that_are_said(tmp_path: Path) -> None:
    specs = ["x:[4,2]:float32", "mask:[4,2]:int64=3..3"]
    x, mask = inputs_of(source(MASKED, tmp_path), ExportConfig(), specs=specs)
    assert (x.dims, mask.dims) == ({}, {})  # a size in place of a name fixes an axis
    assert mask.value.unique().tolist() == [3]


def test_arrays_keep_the_dimensions_of_the_file_and_may_come_in_any_order(tmp_path: Path) -> None:
    arrays = {"mask": np.ones((3, 2), np.int64), "x": np.zeros((3, 2), np.float32)}
    x, mask = inputs_of(source(MASKED, tmp_path), ExportConfig(), npz=arrays)
    assert (x.name, x.dims, mask.dims) == ("x", {0: "n"}, {0: "n"})


@pytest.mark.parametrize(
    ("arrays", "why"),
    [
        ({"x": np.zeros((3, 2), np.float32)}, r"has 2 inputs \(x, mask\), but 1 are given"),
        (
            {"x": np.zeros((3, 2), np.float32), "m": np.ones((3, 2), np.int64)},
            "has no input 'm'; it has x, mask",
        ),
        (
            {"maks": np.ones((3, 2), np.int64), "z": np.zeros((3, 2), np.float32)},
            "has no input 'maks'; it has x, mask",
        ),
        (
            {"x": np.zeros((3, 4), np.float32), "mask": np.ones((3, 2), np.int64)},
            r"input 'x' is float32\[3, 4\], but the file's 'x' is float32\[n, 2\]",
        ),
        (
            {"x": np.zeros((3, 2), np.float64), "mask": np.ones((3, 2), np.int64)},
            r"input 'x' is float64\[3, 2\]",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    tmp_path: Path, arrays: dict[str, np.ndarray], why: str
) -> None:
    with pytest.raises(ConfigError, match=why):
        inputs_of(source(MASKED, tmp_path), ExportConfig(), npz=arrays)


def test_fixed_axis_cannot_be_made_dynamic(tmp_path: Path) -> None:
    arrays = {"x": np.zeros((3, 2), np.float32), "mask": np.ones((3, 2), np.int64)}
    with pytest.raises(ConfigError, match="axis 1 of input 'x' is fixed in the file, at 2"):
        inputs_of(source(MASKED, tmp_path), ExportConfig(), npz=arrays, dynamic=["x:1=channels"])


@pytest.mark.parametrize(
    ("written_dim", "name"),
    [("past + 1", "past+1"), ("past + new", "past_plus_new"), ("/a/Mul_0", "a_Mul_0")],
)
def test_dimensions_of_any_text_get_a_name(tmp_path: Path, written_dim: str, name: str) -> None:
    path = written(MASKED, tmp_path / "model.onnx")
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = written_dim
    onnx.save(model, path)
    arrays = {"x": np.zeros((3, 2), np.float32), "mask": np.ones((3, 2), np.int64)}
    x, _ = inputs_of(read_onnx(path), ExportConfig(), npz=arrays)
    assert x.dims == {0: name}
