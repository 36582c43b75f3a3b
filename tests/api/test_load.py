"""A loaded package is called like its model, on arrays and on tensors."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import moh_deploy
from moh_deploy.errors import ConfigError, PackageError
from moh_deploy.package import OnnxPackage, PackageWriter
from tests.handmade_package import write_package
from tests.nightly import nightly, sampled


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> OnnxPackage:
    return write_package(tmp_path_factory.mktemp("load") / "package")


@pytest.fixture(scope="module")
def inputs(package: OnnxPackage) -> dict[str, np.ndarray]:
    return dict(package.vectors[0].inputs)


def test_results_are_those_that_the_original_recorded(package: OnnxPackage, inputs):
    with moh_deploy.load(package.root) as model:
        expected = package.vectors[0].outputs
        assert [output.name for output in model.outputs] == list(expected)
        by_position = model(*inputs.values())
        by_position = by_position if isinstance(by_position, tuple) else (by_position,)
        for results in (by_position, model.run(inputs).values()):
            for array, item in zip(results, expected.values(), strict=True):
                np.testing.assert_allclose(array, item, atol=1e-5)


def test_one_output_comes_alone_and_several_as_a_tuple_in_their_order(tmp_path: Path):
    made = write_package(tmp_path / "made")
    (output,) = made.manifest.outputs
    model = moh_deploy.load(made.root)
    x = made.vectors[0].inputs
    assert isinstance(model(**x), np.ndarray)
    model.outputs = (output, output)
    assert [array.shape for array in model(**x)] == [model(**x)[0].shape] * 2


def test_tensors_in_tensors_out_without_a_copy(package: OnnxPackage, inputs):
    model = moh_deploy.load(package.root)
    seen: list[int] = []
    run = model._runner.run
    results: dict[str, np.ndarray] = {}

    class Spy:
        def run(self, arrays):
            seen.extend(array.ctypes.data for array in arrays.values())
            results.update(run(arrays))
            return results

    model._runner = Spy()
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    found = model.run(tensors)
    assert seen == [tensor.data_ptr() for tensor in tensors.values()]
    for name, tensor in found.items():
        assert tensor.data_ptr() == results[name].ctypes.data
    plain = moh_deploy.load(package.root).run(inputs)
    for name, tensor in found.items():
        assert isinstance(tensor, torch.Tensor)
        np.testing.assert_array_equal(tensor.numpy(), plain[name])


def test_kernels_and_threads_are_as_asked(package: OnnxPackage, inputs):
    found = moh_deploy.load(package.root, kernels="off", threads=1)
    assert found.describe().kernels.library is None
    assert found._runner.session.get_session_options().intra_op_num_threads == 1


@sampled(5)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda model, x: model(*x.values(), 1), "inputs are given by position; package .* takes"),
        (lambda model, x: model(*x.values(), **x), "is given by position and by name"),
        (lambda model, x: model(), "is missing"),
        (lambda model, x: model(**x, more=1), "'more'"),
        (lambda model, x: model.run({k: v.astype(np.float64) for k, v in x.items()}), "float64"),
    ],
)
def test_wrong_inputs_are_one_sentence(package: OnnxPackage, inputs, change, words: str):
    with pytest.raises(ConfigError, match=words):
        change(moh_deploy.load(package.root), inputs)


def test_sizes_beyond_the_trace_are_refused(tmp_path: Path, package: OnnxPackage, inputs):
    name = next(iter(package.manifest.dims))
    size = package.vectors[0].sizes[name]
    with PackageWriter(tmp_path / "limited") as writer:
        writer.bring_along(package, "model.onnx")
        limited = replace(package.manifest, dim_ranges={name: (1, size)})
        writer.finish(limited, package.vectors)
    axis = package.manifest.inputs[0].shape.index(name)
    longer = {item: np.repeat(array, 2, axis) for item, array in inputs.items()}
    with pytest.raises(ConfigError, match=f"dimension '{name}' is {2 * size}"):
        moh_deploy.load(tmp_path / "limited").run(longer)


def test_what_is_no_package_is_refused(tmp_path: Path):
    with pytest.raises(PackageError):
        moh_deploy.load(tmp_path)


@nightly
def test_arrays_need_no_torch(package: OnnxPackage):
    code = (
        "import sys, moh_deploy, numpy as np; sys.modules['torch'] = None;"
        "model = moh_deploy.load(sys.argv[1]);"
        "p = moh_deploy.OnnxPackage.open(sys.argv[1]);"
        "assert isinstance(next(iter(model.run(p.vectors[0].inputs).values())), np.ndarray)"
    )
    subprocess.run([sys.executable, "-c", code, str(package.root)], check=True, cwd=Path.cwd())
