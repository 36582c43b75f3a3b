"""Packages of small models, as `moh-deploy export` makes them, with random weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import torch

import moh_deploy
from moh_deploy.config.export_config import load_config
from moh_deploy.frontend.load.checkpoint_file import build_module

if TYPE_CHECKING:
    from tests.cuda.trt.rtx import Range  # a machine with a GPU need not have pytest

ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Form:
    """A model to export.

    Attributes:
        plugins: Ops that its engine has to hold.
    """

    config: Path
    code: Path
    plugins: tuple[str, ...]


_CONFIGS, _BENCHMARKS = ROOT / "benchmarks" / "configs", ROOT / "benchmarks"
_DIGITS = ROOT / "examples" / "digits"
FORMS = {
    "digits": Form(_DIGITS / "export.yaml", _DIGITS, ("MoHAttention", "MoHRouter")),
    "dit": Form(_CONFIGS / "dit_form.yaml", _BENCHMARKS, ("MoHAttention", "MoHRouter")),
    "llama": Form(_CONFIGS / "llama_form.yaml", _BENCHMARKS, ("MoHAttention", "MoHRouter")),
    "vit": Form(
        _CONFIGS / "vit_form.yaml",
        _BENCHMARKS,
        ("MoHAggregatedAttention", "MoHAttention", "MoHRouter"),
    ),
}


def export(form: Form, folder: Path) -> Path:
    """Export the model and return its package."""
    config = load_config(form.config, ("model.state_key=null",))
    assert config.model.factory is not None
    torch.manual_seed(0)
    module = build_module(config.model.factory, config.model.kwargs, code_dirs=(form.code,))
    weights = folder / "weights.pt"
    torch.save(module.state_dict(), weights)
    package = folder / "package"
    moh_deploy.export(
        weights,
        package,
        config=form.config,
        overrides=("model.state_key=null",),
        code_dirs=(form.code,),
        trust_code=True,
    )
    return package


def graph(package: Path) -> onnx.ModelProto:
    return onnx.load(package / "model.onnx")


# A profile: sizes of named dims, from the least to the most.
SMALL = {"batch": (1, 2, 4), "seq": (4, 12, 64)}
LARGE = {"batch": (4, 8, 16), "seq": (64, 128, 256)}


def profile(model: onnx.ModelProto, dims: Mapping[str, tuple[int, int, int]]) -> dict[str, Range]:
    """Return the shapes of the inputs, min, opt and max."""
    return {
        value.name: tuple([_size(d, dims, end) for d in _dims(value)] for end in range(3))
        for value in model.graph.input
    }


def _dims(value: onnx.ValueInfoProto) -> list[onnx.TensorShapeProto.Dimension]:
    return list(value.type.tensor_type.shape.dim)


def _size(
    dim: onnx.TensorShapeProto.Dimension, dims: Mapping[str, tuple[int, int, int]], end: int
) -> int:
    return dims[dim.dim_param][end] if dim.HasField("dim_param") else dim.dim_value
