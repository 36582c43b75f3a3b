"""The models of the model benchmark, made ready: original module, package, plain export, inputs."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from moh_deploy.api.export import export
from moh_deploy.config.export_config import ExportConfig, resolved_config
from moh_deploy.config.options import ExportOptions
from moh_deploy.frontend.emit import write_plain_onnx
from moh_deploy.frontend.load.checkpoint_file import build_module
from moh_deploy.frontend.load.load import load
from moh_deploy.frontend.load.model import LoadedModel
from moh_deploy.package import OnnxPackage, VectorSet
from moh_deploy.system.bounded_file import sha256_of
from moh_deploy.system.npz import Array
from moh_deploy.system.user_code import user_code

HERE = Path(__file__).parent
_ORIGINALS = HERE.parent / "export_configs"
_OURS = HERE / "configs"


@dataclass(frozen=True)
class Subject:
    """A model to measure.

    Attributes:
        config: What `moh-deploy export --config` takes.
        folder: Of the original repository that holds the model's code; None for a model of ours.
        batch: Rows of the inputs, unless others are asked for.
    """

    name: str
    config: Path
    folder: str | None
    batch: int


_ALL = (
    Subject("vit-small-75", _ORIGINALS / "moh_vit_s_75.yaml", "MoH-ViT", 2),
    Subject("vit-base-50", _ORIGINALS / "moh_vit_b_50.yaml", "MoH-ViT", 2),
    Subject("dit-s-75", _ORIGINALS / "moh_dit_s_2_75.yaml", "MoH-DiT", 2),
    Subject("dit-b-75", _ORIGINALS / "moh_dit_b_2_75.yaml", "MoH-DiT", 2),
    Subject("llama-prefill", _OURS / "llama_prefill.yaml", None, 1),
    Subject("llama-heads-first", _OURS / "llama_heads_first.yaml", None, 1),
    Subject("llama-decode", _OURS / "llama_decode.yaml", None, 1),
    Subject("vit-form", _OURS / "vit_form.yaml", None, 2),
    Subject("dit-form", _OURS / "dit_form.yaml", None, 2),
    Subject("llama-form", _OURS / "llama_form.yaml", None, 1),
)
SUBJECTS = {subject.name: subject for subject in _ALL}


class NoOriginal(Exception):
    """The model's code is not there; the message says how to give it."""


@dataclass(frozen=True)
class Request:
    """How to make a model.

    Attributes:
        original: A clone of the original repository.
        overrides: As `moh-deploy export --set`.
        checkpoint: The model's weights; None for random ones.
        package: An exported package to measure instead of a new one.
        plain: Whether a plain export is wanted, too.
    """

    original: Path | None = None
    overrides: tuple[str, ...] = ()
    checkpoint: Path | None = None
    package: Path | None = None
    plain: bool = True


@dataclass(frozen=True)
class Prepared:
    """The models to compare.

    Attributes:
        module: The original.
        package: Made from it by `moh-deploy export`, with default options.
        plain: Made from it by `torch.onnx.export`, with default options; there only if wanted.
    """

    module: torch.nn.Module
    package: OnnxPackage
    plain: Path

    def inputs(self, batch: int) -> dict[str, Array]:
        """Return the package's first recorded inputs; rows repeat or are left out for `batch`."""
        return {
            info.name: _with_batch(self.example.inputs[info.name], info.shape, batch)
            for info in self.package.manifest.inputs
        }

    @property
    def example(self) -> VectorSet:
        return self.package.vectors[0]


def prepare(subject: Subject, request: Request, folder: Path) -> Prepared:
    """Load, export and open a model.

    Args:
        folder: Where files are written; a plain export of the same weights is taken from there.

    Raises:
        NoOriginal: The model's code has to be given.
        MoHDeployError: The model cannot be loaded or exported.
    """
    options = _options(subject, request, folder)
    config = resolved_config(options)
    if request.checkpoint is None:
        _say(subject, "writing random weights")
        _write_random_weights(config, options)
    loaded = load(options.model, config.model)
    assert loaded.module is not None
    if request.package is None:
        _say(subject, "moh-deploy export")
        export(
            options.model,
            options.output,
            config=options.config,
            overrides=options.overrides,
            code_dirs=options.code_dirs,
            trust_code=options.trust_code,
        )
    package, plain = OnnxPackage.open(options.output), folder / "plain" / "model.onnx"
    if request.plain:
        with user_code(config.model.code_dirs):
            _export_plain(subject, loaded, package, options, plain)
    return Prepared(loaded.module, package, plain)


def _options(subject: Subject, request: Request, folder: Path) -> ExportOptions:
    folder.mkdir(parents=True, exist_ok=True)
    overrides = request.overrides
    if request.checkpoint is None:
        overrides += ("model.state_key=null",)
    return ExportOptions(
        model=request.checkpoint or folder / "random_weights.pt",
        output=request.package or folder / "package",
        config=subject.config,
        overrides=overrides,
        code_dirs=_code_dirs(subject, request.original),
        trust_code=True,  # the configurations are those of this repository
    )


def _code_dirs(subject: Subject, original: Path | None) -> tuple[Path, ...]:
    if subject.folder is None:
        return ()
    if original is None:
        raise NoOriginal(
            f"{subject.name} needs the original code: clone https://github.com/SkyworkAI/MoH and"
            " give its folder with --original."
        )
    if not (original / subject.folder).is_dir():
        raise NoOriginal(
            f"{subject.name}: {original} has no folder {subject.folder};"
            " expected a clone of https://github.com/SkyworkAI/MoH."
        )
    return (original / subject.folder,)


def _write_random_weights(config: ExportConfig, options: ExportOptions) -> None:
    """Write the same initial weights each time, with noise for zeros: training would leave none.

    A model whose last layer is all zeros gives the same output whatever comes before.
    """
    assert config.model.factory is not None
    torch.manual_seed(0)
    module = build_module(
        config.model.factory, config.model.kwargs, code_dirs=config.model.code_dirs
    )
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)
    torch.save(module.state_dict(), options.model)


def _export_plain(
    subject: Subject, model: LoadedModel, package: OnnxPackage, options: ExportOptions, path: Path
) -> None:
    """Export with the defaults of torch, unless that was done before."""
    stamp = path.with_name("made_of.json")
    made_of = _made_of(options)
    if stamp.is_file() and stamp.read_text() == made_of:
        return
    _say(subject, "torch.onnx.export")
    path.parent.mkdir(exist_ok=True)
    write_plain_onnx(model, package, path)
    stamp.write_text(made_of)


def _made_of(options: ExportOptions) -> str:
    assert isinstance(options.model, Path)
    versions = {name: version(name) for name in ("torch", "onnx", "onnxscript")}
    return json.dumps({"weights": sha256_of(options.model), "set": options.overrides, **versions})


def _with_batch(array: Array, shape: Sequence[int | str], batch: int) -> Array:
    for axis, size in enumerate(shape):
        if size == "batch":
            array = np.take(array, np.arange(batch) % array.shape[axis], axis=axis)
    return array


def _say(subject: Subject, step: str) -> None:
    print(f"{subject.name}: {step}", file=sys.stderr)
