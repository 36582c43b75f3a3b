"""The original model in eager PyTorch, as something that takes arrays and can be timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from moh_deploy.config.export_config import resolved_config
from moh_deploy.config.options import ModelOptions
from moh_deploy.errors import BackendError, ConfigError
from moh_deploy.frontend.emit import write_plain_onnx
from moh_deploy.frontend.fx.arrays import to_numpy, to_torch
from moh_deploy.frontend.load.load import load
from moh_deploy.frontend.load.model import LoadedModel
from moh_deploy.frontend.prove.original import on_threads, run_original
from moh_deploy.package import Manifest, OnnxPackage
from moh_deploy.system.npz import Array
from moh_deploy.system.user_code import describe_error, user_code
from moh_deploy.validate.reference.reference import Answers
from moh_deploy.validate.reference.samples import Sample

if TYPE_CHECKING:
    from moh_deploy.frontend.prove.rerun import Traced


@dataclass(frozen=True)
class EagerModel:
    """A loaded original: also a `Reference` that a package can be compared with."""

    options: ModelOptions
    model: LoadedModel
    code_dirs: tuple[Path, ...]
    _traced: dict[Path, Traced] = field(default_factory=dict, repr=False, compare=False)

    @property
    def sha256(self) -> str | None:
        """Digest of the checkpoint; None for a model in memory."""
        return self.model.checkpoint_sha256

    @property
    def runtime(self) -> str:
        """Return `PyTorch 2.13.0`; an ONNX file runs in ONNX Runtime."""
        if self.model.original is not None:
            return self.model.original.runner.describe().runtime
        return f"PyTorch {torch.__version__}"

    @property
    def name(self) -> str:
        """The model in the words of a report: `original model build/digits.pt`."""
        model = self.options.model
        named = model if isinstance(model, (str, Path)) else f"{type(model).__name__} in memory"
        return f"original model {named}"

    def answers(self, package: OnnxPackage, samples: Sequence[Sample]) -> Answers:
        """Return what it computes on a package's samples, and how its layers route.

        Raises:
            ConfigError: It does not take the package's inputs, or is of another architecture.
            ExportError: It cannot be traced, or what was traced is not the model.
        """
        # What only times a model does without recognition.
        from moh_deploy.frontend.prove.rerun import answers_of

        with user_code(self.code_dirs):
            return answers_of(self.model, self.name, package, samples, self._traced)

    def called_by(self, manifest: Manifest) -> EagerModel:
        """Return it as a package says that it is called."""
        return replace(self, model=self.model.called_by(manifest))

    def run(self, arguments: Sequence[Array]) -> list[Array]:
        """Run the original module once.

        Args:
            arguments: The inputs as the package has them, of its dtypes; of one that is not
                `called_by` a package, its positional arguments.

        Returns:
            Its output tensors, in order.

        Raises:
            BackendError: The user's code fails.
        """
        try:
            with user_code(self.code_dirs):
                tensors = run_original(self.model, [to_torch(argument) for argument in arguments])
        except Exception as error:
            given = ", ".join(f"{argument.dtype}{list(argument.shape)}" for argument in arguments)
            raise BackendError(
                f"the original model fails on the package's inputs ({given}):"
                f" {describe_error(error)}.",
                hint="Is it the model that the package was made from? --dtype brings it to the"
                " dtype of the package's inputs.",
            ) from error
        return [to_numpy(tensor) for tensor in tensors]

    def bound(self, arguments: Sequence[Array]) -> Callable[[], object]:
        """Return a call that runs it on these arguments, without gradients: to be timed.

        Raises:
            ConfigError: It is an ONNX file, which is opened unoptimised here.
        """
        self._refuse_onnx("eager")
        call, tensors = self.model.callable(), [to_torch(argument) for argument in arguments]

        def run() -> None:
            with torch.no_grad():
                call(*tensors)

        return run

    def on_threads(self, threads: int | None) -> AbstractContextManager[None]:
        """Let PyTorch use so many threads within an operator; None for its own choice."""
        return on_threads(threads)

    def write_onnx(self, path: Path, package: OnnxPackage) -> None:
        """Export it with `torch.onnx.export` alone, for the sizes that a package takes.

        Raises:
            ExportError: PyTorch cannot export it.
            ConfigError: It is an ONNX file already.
        """
        self._refuse_onnx("plain-onnx")
        with user_code(self.code_dirs):
            write_plain_onnx(self.model, package, path)

    def loader(self) -> Callable[[], EagerModel] | None:
        """Return what loads it again in another process; None for a model in memory."""
        named = self.options.model
        return partial(open_eager, self.options) if isinstance(named, (str, Path)) else None

    def _refuse_onnx(self, baseline: str) -> None:
        if self.model.original is not None:
            path = self.model.original.source.path
            raise ConfigError(
                f"the original model {path} is an ONNX file: there is no {baseline} of it.",
                hint=f"Name the file itself: --baseline {path}.",
            )


def open_eager(options: ModelOptions) -> EagerModel:
    """Load the original model.

    Raises:
        CheckpointError: The file cannot be read, is not trusted, or does not fit the module.
        ConfigError: An option or the configuration is wrong.
    """
    config = resolved_config(options).model
    model = load(
        options.model,
        config,
        task=options.task,
        dtype=options.dtype,
        trust_pickle=options.trust_pickle,
        trust_code=options.trust_code,
    )
    return EagerModel(options, model, config.code_dirs)
