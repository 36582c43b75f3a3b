"""The types that the frontend passes along: a loaded model and its example inputs."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from keyword import iskeyword
from typing import Literal

import torch
from torch.export.graph_signature import ConstantArgument, InputKind
from torch.utils._pytree import tree_unflatten

from moh_deploy.config.dims import DimExpr, DynamicAxis, solve_sizes
from moh_deploy.frontend.fx.arrays import dtype_name
from moh_deploy.frontend.fx.containers import built, without_classes
from moh_deploy.frontend.load.decoder import Decoder, make_decoder
from moh_deploy.frontend.load.model_directory import ModelDirectory
from moh_deploy.frontend.load.onnx_graph.file import OnnxOriginal
from moh_deploy.package import Call, CallArgument, Manifest, TensorInfo
from moh_deploy.package.interface import mask_name

CheckpointForm = Literal[
    "module", "state_dict", "checkpoint", "safetensors", "pt2", "onnx", "in_memory", "directory"
]


@dataclass(frozen=True)
class ModelInput:
    """One positional argument of the model."""

    name: str  # name of the ONNX input
    value: torch.Tensor  # example tensor; every dynamic axis has its example size
    # Axis to dimension expression: `{0: "batch"}`, or derived, `{1: "past+1"}`. Axes that are
    # absent are fixed.
    dims: dict[int, str] = field(default_factory=dict)
    # It is a mask of valid tokens, [batch, tokens] of 0 and 1 or [batch, ..., tokens] that is added
    # to scores: what is computed for the others is not compared.
    says_valid: bool = False
    marks_padding: bool = False  # as such a mask it is 1 for padding, and 0 for valid tokens
    new_tokens: str | None = None  # as such a mask: see `Manifest.new_tokens`

    @property
    def mask_name(self) -> str:
        """Its name as a mask of valid tokens, see `token_mask`."""
        return mask_name(self.name, marks_padding=self.marks_padding)

    @property
    def parsed_dims(self) -> dict[int, DimExpr]:
        """Dynamic axis to its dimension."""
        return {
            axis: DimExpr.parse(text, place=f"axis {axis} of input '{self.name}'")
            for axis, text in self.dims.items()
        }

    @property
    def info(self) -> TensorInfo:
        """What a package says of it."""
        named = {axis: str(dim) for axis, dim in self.parsed_dims.items()}
        shape = tuple(named.get(axis, size) for axis, size in enumerate(self.value.shape))
        return TensorInfo(self.name, dtype_name(self.value.dtype), shape)


def example_sizes(inputs: Sequence[ModelInput]) -> dict[str, int]:
    """Return the example size of every dimension name.

    Raises:
        ConfigError: Two axes disagree, or a dynamic axis has an example size below 2.
    """
    return solve_sizes(
        DynamicAxis(f"axis {axis} of input '{item.name}'", expr, item.value.shape[axis])
        for item in inputs
        for axis, expr in item.parsed_dims.items()
    )


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode, ready to be traced. Exactly one of `module` and `program` is set."""

    # The user's module with the checkpoint's weights in it; of an ONNX file, one that computes its
    # nodes.
    module: torch.nn.Module | None
    program: torch.export.ExportedProgram | None  # the exported program of a `.pt2` file
    form: CheckpointForm  # how the checkpoint stored the model
    # Digest of the file, or None for a model that was handed over in memory.
    checkpoint_sha256: str | None
    # How the module takes the inputs; None where they are its positional arguments.
    call: Call | None = None
    # Names of inputs for which its forward has no parameter but `**kwargs`.
    unknown: frozenset[str] = frozenset()
    # Of a language model that is to generate text: what its caches are.
    decoder: Decoder | None = None
    directory: ModelDirectory | None = None  # the directory that it was loaded from, if it was one
    original: OnnxOriginal | None = None  # of an ONNX file: what it computes, by ONNX Runtime
    # Of a model that was brought to another dtype: what its inputs of its former dtypes are brought
    # to.
    input_dtypes: Mapping[torch.dtype, torch.dtype] = field(default_factory=dict)

    def callable(self) -> Callable[..., object]:
        """Return what runs the model on its inputs, one by one."""
        if self.original is not None:
            return self.original
        if self.module is not None:
            module, call = self.module, self.call
            if call is None:
                return module

            def called(*tensors: torch.Tensor) -> object:
                args, kwargs = arguments_of(call, tensors)
                return module(*args, **kwargs)

            return called
        assert self.program is not None
        run, spec = self.program.module(), self.program.call_spec.in_spec
        specs = self.program.graph_signature.input_specs
        inputs = [item for item in specs if item.kind is InputKind.USER_INPUT]

        def placed(*tensors: object) -> object:
            # Where the program was exported with them: in tuples, by keyword, and constants (None,
            # a bool, a number) between them.
            given = iter(tensors)
            leaves = [
                item.arg.value if isinstance(item.arg, ConstantArgument) else next(given)
                for item in inputs
            ]
            args, kwargs = tree_unflatten(leaves, spec)
            return run(*args, **kwargs)

        return placed

    def called_by(self, manifest: Manifest) -> LoadedModel:
        """Return the model as the original of a package is called.

        Raises:
            ConfigError, ExportError: The package generates text, and the model does not.
        """
        if self.module is None:
            return self
        decoder = self.decoder
        if manifest.text_generation is not None and decoder is None:
            decoder = make_decoder(self.module)
        return replace(self, call=manifest.call, decoder=decoder)


# Call a model as its package says: tensors, one by one, become its nested arguments.


def arguments_of(
    call: Call, tensors: Sequence[torch.Tensor]
) -> tuple[tuple[object, ...], dict[str, object]]:
    """Return the positional arguments and those by keyword; each call makes new containers.

    Args:
        tensors: Values of the package's inputs, in its order.

    Raises:
        ConfigError: A class of the call is not known here.
    """
    remaining = iter(tensors)

    def value(argument: CallArgument) -> object:
        if argument.input is not None:
            return next(remaining)
        if argument.container is None:
            return argument.value
        return built(argument.container, argument.context, list(map(value, argument.items)))

    args = tuple(map(value, call.args))
    return args, {name: value(kwarg) for name, kwarg in call.kwargs.items()}


def positional(names: Sequence[str]) -> Call:
    """Return the call in which the inputs are the positional arguments."""
    return Call(tuple(CallArgument(input=name) for name in names), {})


@contextlib.contextmanager
def taking_tensors(module: torch.nn.Module, call: Call) -> Iterator[tuple[str, ...]]:
    """Let a module take the inputs of a call one by one, as torch.export and torch.onnx need them.

    They see neither keywords, constants nor classes then. The module stays the root of its layers,
    and its hooks get the arguments that they were written for. What it returns is made of dicts,
    lists and tuples.

    Yields:
        What the module calls each of them meanwhile.
    """
    names: list[str] = []  # that Python takes for parameters: `past.0.key` is `past_0_key`
    for name in call.inputs:
        made = re.sub(r"\W", "_", name, flags=re.ASCII)
        usable = made.isidentifier() and not iskeyword(made) and made != "self"
        made = made if usable else f"input_{made}"
        while made in names:
            made += "_"
        names.append(made)
    cls = type(module)

    def takes_tensors(self: torch.nn.Module, *tensors: torch.Tensor) -> object:
        args, kwargs = arguments_of(call, tensors)
        return without_classes(cls.__call__(self, *args, **kwargs))

    own = module.__dict__.get("forward")

    def forward(self: torch.nn.Module, *args: object, **kwargs: object) -> object:
        return own(*args, **kwargs) if own is not None else cls.forward(self, *args, **kwargs)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind) for name in ("self", *names)]
    forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    members = {
        "__call__": takes_tensors,
        "forward": forward,
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
    }
    module.__dict__.pop("forward", None)
    module.__class__ = type(cls.__name__, (cls,), members)
    try:
        yield tuple(names)
    finally:
        module.__class__ = cls
        if own is not None:
            module.__dict__["forward"] = own
