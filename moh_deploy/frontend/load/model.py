"""The types that the frontend passes along: a loaded model and its example inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch.export.graph_signature import ConstantArgument, InputKind
from torch.utils._pytree import tree_unflatten

from moh_deploy.frontend.load.call import arguments_of
from moh_deploy.frontend.load.decoder import Decoder, make_decoder
from moh_deploy.frontend.load.directory.files import ModelDirectory
from moh_deploy.frontend.load.onnx_graph.original import OnnxOriginal
from moh_deploy.package import Call, Manifest
from moh_deploy.package.token_mask import mask_name

_USER_INPUT = InputKind.USER_INPUT

CheckpointForm = Literal[
    "module", "state_dict", "checkpoint", "safetensors", "pt2", "onnx", "in_memory", "directory"
]


@dataclass(frozen=True)
class ModelInput:
    """One positional argument of the model.

    Attributes:
        name: Name of the ONNX input.
        value: Example tensor; every dynamic axis has its example size.
        dims: Axis to dimension expression: `{0: "batch"}`, or derived, `{1: "past+1"}`. Axes that
            are absent are fixed.
        says_valid: It is a mask of valid tokens, [batch, tokens] of 0 and 1 or [batch, ..., tokens]
            that is added to scores: what is computed for the others is not compared.
        marks_padding: As such a mask it is 1 for padding, and 0 for valid tokens.
    """

    name: str
    value: torch.Tensor
    dims: dict[int, str] = field(default_factory=dict)
    says_valid: bool = False
    marks_padding: bool = False

    @property
    def mask_name(self) -> str:
        """Its name as a mask of valid tokens, see `token_mask`."""
        return mask_name(self.name, marks_padding=self.marks_padding)


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode, ready to be traced. Exactly one of `module` and `program` is set.

    Attributes:
        module: The user's module with the checkpoint's weights in it; of an ONNX file, one that
            computes its nodes.
        program: The exported program of a `.pt2` file.
        form: How the checkpoint stored the model.
        checkpoint_sha256: Digest of the file, or None for a model that was handed over in memory.
        call: How the module takes the inputs; None where they are its positional arguments.
        unknown: Names of inputs for which its forward has no parameter but `**kwargs`.
        decoder: Of a language model that is to generate text: what its caches are.
        directory: The directory that it was loaded from, if it was one.
        original: Of an ONNX file: what it computes, by ONNX Runtime.
    """

    module: torch.nn.Module | None
    program: torch.export.ExportedProgram | None
    form: CheckpointForm
    checkpoint_sha256: str | None
    call: Call | None = None
    unknown: frozenset[str] = frozenset()
    decoder: Decoder | None = None
    directory: ModelDirectory | None = None
    original: OnnxOriginal | None = None

    def callable(self) -> Callable[..., object]:
        """Return what runs the model on its inputs, one by one."""
        if self.original is not None:
            return self.original
        if self.module is not None:
            return self.module if self.call is None else self._called
        assert self.program is not None
        run, spec = self.program.module(), self.program.call_spec.in_spec
        inputs = [s for s in self.program.graph_signature.input_specs if s.kind is _USER_INPUT]

        def positional(*tensors: object) -> object:
            """Put the tensors where the program was exported with them: in tuples, by keyword, and
            constants (None, a bool, a number) between them.
            """
            given = iter(tensors)
            leaves = [
                item.arg.value if isinstance(item.arg, ConstantArgument) else next(given)
                for item in inputs
            ]
            args, kwargs = tree_unflatten(leaves, spec)
            return run(*args, **kwargs)

        return positional

    def called_by(self, manifest: Manifest) -> LoadedModel:
        """Return the model as the original of a package is called.

        Raises:
            ConfigError, ExportError: The package generates text, and the model does not.
        """
        if self.module is None:
            return self
        if manifest.text_generation is not None and self.decoder is None:
            decoder = make_decoder(self.module)
            return replace(self, call=manifest.call, decoder=decoder)
        return replace(self, call=manifest.call)

    def _called(self, *tensors: torch.Tensor) -> object:
        assert self.module is not None
        assert self.call is not None
        args, kwargs = arguments_of(self.call, tensors)
        return self.module(*args, **kwargs)
