"""Models that are called in other ways than by tensors in a row: exported, run, called again.

How inputs are brought to parameters is tested in tests/frontend/inputs/test_arguments.py.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import moh_deploy
from moh_deploy.api.export import _inputs as positional_inputs
from moh_deploy.config.options import RequiredLayers
from moh_deploy.derive.forms import with_top_k
from moh_deploy.errors import ConfigError, ExportError, PackageError
from moh_deploy.frontend.export_package import require_layers
from moh_deploy.frontend.fx.arrays import to_numpy
from moh_deploy.frontend.fx.containers import tensors_of
from moh_deploy.frontend.inputs.arguments import bind
from moh_deploy.package import NearMiss, OnnxPackage
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.models import OnnxFile
from moh_deploy.system.npz import write_npz
from tests import called_models as models
from tests.exporting import prove_in_this_process, run
from tests.handmade_package import LAYER, write_package
from tests.nightly import nightly, one_in


@pytest.fixture(autouse=True)
def _proof_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    prove_in_this_process(monkeypatch)


@dataclass(frozen=True)
class Way:
    """A way of calling a model.

    Attributes:
        inputs: Batch, tokens and cached tokens to what it is called with.
        outputs: What its outputs are called.
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[int, int, int], dict[str, object]]
    dynamic: tuple[str, ...]
    outputs: tuple[str, ...]


_IDS = "ids:0=batch,1=seq"

WAYS = {
    "keywords": Way(
        models.Keywords,
        lambda batch, seq, past: {
            "mode": "states",
            "scale": torch.tensor([2.0]),
            "past": models.past(batch, past),
            "use_cache": True,
            "mask": models.mask(batch, past + seq),
            "ids": models.ids(batch, seq),
        },
        (_IDS, "mask:0=batch,1=total", *(f"past.0.{i}:0=batch,2=past" for i in (0, 1))),
        ("states", "past.0.0_out", "past.0.1_out"),
    ),
    "dataclass": Way(
        models.TakesABatch,
        lambda batch, seq, _: {
            "batch": models.Batch(models.ids(batch, seq), models.mask(batch, seq), scaled=True)
        },
        (f"batch.{_IDS}", "batch.mask:0=batch,1=seq"),
        ("states",),
    ),
    "dict": Way(
        models.TakesADict,
        lambda batch, seq, _: {
            "batch": {
                "extra": {"mask": models.mask(batch, seq)},
                "ids": models.ids(batch, seq),
            }
        },
        (f"batch.{_IDS}", "batch.extra.mask:0=batch,1=seq"),
        ("states",),
    ),
    "class": Way(
        models.TakesACache,
        lambda batch, seq, past: {
            "cache": models.Cache([models.State(*pair) for pair in models.past(batch, past)], 7),
            "ids": models.ids(batch, seq),
        },
        (_IDS, *(f"cache.0.{name}:0=batch,2=past" for name in ("key", "value"))),
        ("output_0", "output_1.0.key", "output_1.0.value"),
    ),
}


@nightly
@pytest.mark.parametrize("name", one_in(4, WAYS))
def test_package_equals_a_model_that_is_called_so(tmp_path: Path, name: str):
    way = WAYS[name]
    model = models.seeded(way.build())
    report = moh_deploy.export(
        model, tmp_path / "package", inputs=way.inputs(2, 5, 3), dynamic=way.dynamic
    )
    assert [layer.replaced for layer in report.layers] == [True]
    assert [layer.path for layer in report.layers] == ["layers.0"]
    assert tuple(item.name for item in report.outputs) == way.outputs
    given = way.inputs(3, 4, 6)  # sizes that the export did not see
    with torch.no_grad():
        expected = tensors_of(model(**given))
    feeds = {item.name: to_numpy(item.value) for item in bind(model.forward, given).inputs}
    found = run(tmp_path / "package", **feeds)
    for output, reference in zip(found.values(), expected, strict=True):
        np.testing.assert_allclose(output, to_numpy(reference), rtol=0, atol=1e-4)
    # The package says how the original is called, so that it can be called again.
    write_npz(tmp_path / "given.npz", feeds)
    original = moh_deploy.load_original(model)
    verified = moh_deploy.verify(
        tmp_path / "package", inputs=[tmp_path / "given.npz"], against=[original]
    )
    verified.raise_if_unequal()
    package = OnnxPackage.open(tmp_path / "package")
    again = original.called_by(package.manifest)
    for output, reference in zip(again.run(list(feeds.values())), expected, strict=True):
        np.testing.assert_array_equal(output, to_numpy(reference))
    again.write_onnx(tmp_path / "plain.onnx", package)
    plain = OnnxFile(tmp_path / "plain.onnx").open(Variant()).run(feeds)
    for output, reference in zip(plain.values(), expected, strict=True):
        np.testing.assert_allclose(output, to_numpy(reference), rtol=0, atol=1e-4)


def test_inputs_of_a_file_are_bound_by_name_and_constants_by_option(tmp_path: Path):
    way = WAYS["keywords"]
    model = models.seeded(way.build())
    bound = bind(model.forward, way.inputs(2, 5, 3))
    arrays = {item.name: to_numpy(item.value) for item in reversed(bound.inputs)}
    write_npz(tmp_path / "inputs.npz", arrays)
    moh_deploy.export(
        model,
        tmp_path / "package",
        inputs=tmp_path / "inputs.npz",
        input_specs=["use_cache=True", "mode=states"],
    )
    assert OnnxPackage.open(tmp_path / "package").manifest.call == bound.call


def test_inputs_that_fit_no_parameter_are_refused(tmp_path: Path):
    model = models.seeded(models.Keywords())
    with pytest.raises(ConfigError, match="no input is given for 'scale'"):
        moh_deploy.export(model, tmp_path / "package", inputs={"ids": models.ids()})
    given = {"ids": models.ids(), "scale": torch.ones(1), "mode": "states"}
    with pytest.raises(ExportError, match="does not read the input 'maks'"):
        moh_deploy.export(model, tmp_path / "package", inputs={**given, "maks": models.mask()})


def test_tensor_by_itself_is_the_only_argument():
    tensor = torch.zeros(1, 8, 16)
    assert positional_inputs(tensor) == (tensor,)
    assert positional_inputs([tensor, 2]) == (tensor, 2)


# An export that replaced fewer layers than required is refused, with what is missing.


KEPT = replace(LAYER, path="kept", replaced=False, node=None, reason="tanh is in the way")
NEAR = NearMiss(("block",), "softmax was followed; lost at flip", "attention.py:8", None)
ALL = "all, 1 or more, and no near miss (require_layers)."
OF_KEPT = "kept: tanh is in the way"
OF_NEAR = (
    "Besides, 1 place looks like one:\nblock: softmax was followed; lost at flip (attention.py:8)"
)
NO_LAYER = "This model has no MoH layer: it is an ordinary ONNX model."


@pytest.mark.parametrize(
    ("wanted", "layers", "near_misses", "found", "missing"),
    [
        (None, (), (NEAR,), None, None),
        (0, (), (NEAR,), None, None),
        (1, (LAYER, KEPT), (NEAR,), None, None),
        (2, (LAYER, LAYER), (), None, None),
        ("all", (LAYER,), (), None, None),
        (2, (LAYER, KEPT), (), "1 MoH layer of 2", f"at least 2 (require_layers).\n{OF_KEPT}"),
        ("all", (LAYER,), (NEAR,), "1 MoH layer of 1", f"{ALL}\n{OF_NEAR}"),
        ("all", (LAYER, KEPT), (), "1 MoH layer of 2", f"{ALL}\n{OF_KEPT}"),
        (1, (), (), "0 MoH layers of 0", f"at least 1 (require_layers).\n{NO_LAYER}"),
        ("all", (), (), "0 MoH layers of 0", f"{ALL}\n{NO_LAYER}"),
    ],
)
def test_missing_layers_are_refused_with_what_is_known_of_them(
    wanted: RequiredLayers | None,
    layers: tuple[object, ...],
    near_misses: tuple[NearMiss, ...],
    found: str | None,
    missing: str | None,
):
    if found is None:
        require_layers(wanted, layers, near_misses)
        return
    with pytest.raises(ExportError) as refused:
        require_layers(wanted, layers, near_misses)
    assert refused.value.message == f"{found} became operators, expected {missing}"
    assert refused.value.exit_code == 4


# What a package is made of is not replaced by what is made of it, by any function that does so.


MAKERS = {
    "precision": lambda root: moh_deploy.precision(root, to="int8", output=root),
    "prune": lambda root: moh_deploy.prune(root, output=root, keep=1),
    "with_top_k": lambda root: with_top_k(root, root, top_k=1),
    "bisect": lambda root: moh_deploy.bisect(root, to="float16", output=root),
    "bisect by a reference": lambda root: moh_deploy.bisect(
        root.with_name("low"), reference=root, output=root
    ),
    "tune_within": lambda root: moh_deploy.tune_within(root, within="parity", output=root),
}


@pytest.mark.parametrize("maker", MAKERS)
def test_package_that_another_is_made_of_stays(tmp_path: Path, maker: str):
    root = write_package(tmp_path / "package").root
    before = (root / "model.onnx").read_bytes()
    with pytest.raises(PackageError, match="is the package that another one is to be made of"):
        MAKERS[maker](root)
    assert (root / "model.onnx").read_bytes() == before


class Joined(nn.Module):
    def forward(self, x: torch.Tensor, past: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return torch.cat([past, x], 1) * mask


AUTO, PAST = torch.export.Dim.AUTO, torch.export.Dim("past")


@nightly
@pytest.mark.parametrize(
    ("tokens", "dims", "expected"),
    [
        (1, ({}, {1: PAST}, {1: PAST + 1}), ("past_dim_1", "past_dim_1+1")),
        (3, ({1: AUTO}, {1: AUTO}, {1: AUTO}), ("past_dim_1", "mask_dim_1")),
    ],
    ids=["past+1", "past+seq"],
)
def test_program_whose_sizes_follow_from_others_is_proven_at_other_sizes(
    tmp_path: Path, tokens: int, dims: tuple[dict, ...], expected: tuple[str, str]
):
    example = tuple(torch.ones(2, size) for size in (tokens, 5, tokens + 5))
    program = torch.export.export(Joined(), example, dynamic_shapes=dims)
    torch.export.save(program, tmp_path / "step.pt2")
    report = moh_deploy.export(tmp_path / "step.pt2", tmp_path / "package")
    package = OnnxPackage.open(report.package)
    assert tuple(item.shape[1] for item in package.manifest.inputs[1:]) == expected
    lengths = {
        tuple(vectors.inputs[name].shape[1] for name in ("x", "past", "mask"))
        for vectors in package.vectors
    }
    assert len(lengths) > 1
    assert all(new + past == total for new, past, total in lengths)


@nightly
def test_limit_of_an_exported_program_is_called_its_own(tmp_path: Path):
    shapes = ({0: torch.export.Dim("batch", max=64)},)
    program = torch.export.export(nn.Linear(4, 4), (torch.ones(2, 4),), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "linear.pt2")
    report = moh_deploy.export(tmp_path / "linear.pt2", tmp_path / "package")
    assert report.dim_ranges == {"batch": (1, 64)}
    assert report.limits == {"batch": "the program was exported so"}
