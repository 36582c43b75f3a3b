"""Read an ONNX file: what it takes and returns, its nodes, and its weights, which stay mapped."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir
import torch

from moh_deploy.errors import CheckpointError, ExportError, PackageError
from moh_deploy.frontend.fx.arrays import to_numpy, to_torch
from moh_deploy.frontend.load.fileform import joined_digest
from moh_deploy.frontend.load.onnx_graph.node_call import TORCH_DTYPES, Graph, plain_graph
from moh_deploy.graph.load_model import inline_functions
from moh_deploy.graph.switch_by_size import without_switches
from moh_deploy.ops.op_names import base_domain
from moh_deploy.package.onnx_outline import read_outline
from moh_deploy.runtime.base import Runner
from moh_deploy.runtime.onnxruntime.clean_model import RANDOM_OPERATORS, clean_model
from moh_deploy.system.bounded_file import is_plain_name, open_regular, sha256_of

OLDEST_OPSET, NEWEST_OPSET = 13, 24


@dataclass(frozen=True)
class OnnxInput:
    """An input of the graph, as the file declares it."""

    name: str
    dtype: str  # as numpy calls it
    # Sizes, and the names or expressions of dynamic dimensions; empty text for one without a name.
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class OnnxSource:
    """Hold an ONNX file that was read and cleaned, and what it says of itself."""

    path: Path
    # Cleaned; functions but those of MoH operators are put in their place.
    graph: Graph = field(repr=False)
    opsets: Mapping[str, int]  # domain to version
    inputs: tuple[OnnxInput, ...]
    outputs: tuple[str, ...]  # names, in order
    metadata: Mapping[str, str]  # the model's own `metadata_props`
    sha256: str  # of the file and of the files that its weights lie in

    @property
    def opset(self) -> int:
        """Version of the standard operators."""
        return self.opsets[""]


def read_onnx(path: Path) -> OnnxSource:
    """Read an ONNX file.

    Raises:
        CheckpointError: It is damaged, a file of its weights is missing or too short, its operator
            set is too new or too old, or an input is no tensor.
        ExportError: It has loops, or draws random numbers; all such nodes are named.
    """
    files = _checked_files(path)
    try:
        model = ir.load(path)
        model.opset_imports.setdefault("", model.opset_imports.pop("ai.onnx", 0))
        opset = model.opset_imports[""]
        if not OLDEST_OPSET <= opset <= NEWEST_OPSET:
            is_new = opset > NEWEST_OPSET
            raise CheckpointError(
                f"{path}: is of operator set {opset}, which is"
                f" {'newer than what is known here' if is_new else 'too old'}; expected"
                f" {OLDEST_OPSET} to {NEWEST_OPSET}.",
                hint="Export it again with another opset, or convert it: onnx.version_converter."
                f"convert_version(model, {NEWEST_OPSET if is_new else 18}).",
            )
        without_switches(model)
        ours = [n.name for n in model.graph if n.name and base_domain(n.domain) is not None]
        inline_functions(model, but=ours)
        given = (value for value in model.graph.inputs if not value.is_initializer())
        inputs = tuple(_input(path, value) for value in given)
        outputs = tuple(value.name or "" for value in model.graph.outputs)
        metadata = dict(model.metadata_props)
        model = clean_model(model)
        graph = plain_graph(model.graph)
    except CheckpointError as error:
        message = error.message
        named = message if message.startswith(str(path)) else f"{path}: {message}"
        raise CheckpointError(named, hint=error.hint) from error
    except PackageError as error:
        raise CheckpointError(f"{path}: {error.message}", hint=error.hint) from error
    except Exception as error:  # onnx-ir fails in many ways at what it does not expect
        raise CheckpointError(
            f"{path} cannot be read as an ONNX model: {type(error).__name__}: {error}."
        ) from error
    refused: dict[str, list[str]] = {}
    for node in graph.all_nodes():
        if (node.bodies and node.op_type != "If") or node.op_type in RANDOM_OPERATORS:
            refused.setdefault(node.operator, []).append(node.name or node.outputs[0])
    if refused:
        listed = "; ".join(
            f"{operator} ({len(names)}x: {', '.join(names[:3])}{', ...' * (len(names) > 3)})"
            for operator, names in sorted(refused.items(), key=lambda item: -len(item[1]))
        )
        raise ExportError(
            f"{path}: has {sum(map(len, refused.values()))} nodes that cannot be exported:"
            f" {listed}.",
            hint="A loop has to be unrolled when the model is exported; a model that draws random"
            " numbers is equal to no other one.",
        )
    digests = [sha256_of(file) for file in files]
    digest = joined_digest(digests)
    opsets = dict(model.opset_imports)
    return OnnxSource(path, graph, opsets, inputs, outputs, metadata, digest)


def _checked_files(path: Path) -> list[Path]:
    """Return the file and those that its weights lie in; what does not fit together is refused."""
    try:
        tensors = read_outline(path)
    except PackageError as error:
        raise CheckpointError(error.message, hint=error.hint) from error
    files: dict[Path, int] = {}
    for tensor in tensors:
        weight, location = tensor.name[:200], tensor.entries.get("location", "")
        # A path that leads elsewhere would be read from anywhere on this machine.
        if not all(map(is_plain_name, location.split("/"))):
            raise CheckpointError(
                f"{path}: the data of weight '{weight}' is in '{location[:200]}', expected a file"
                " beside the model."
            )
        data = path.parent / location
        if data not in files:
            try:
                with open_regular(data):
                    files[data] = data.stat().st_size
            except FileNotFoundError:
                raise CheckpointError(
                    f"{data}: no such file; {path.name} has the data of weight '{weight}' there.",
                    hint="Copy it along: an ONNX model and its external data belong together.",
                ) from None
            except OSError as error:
                raise CheckpointError(
                    f"{data}: cannot be read: {error.strerror}; {path.name} has weights in it."
                ) from error
        # Optional in ONNX: without, the data begins at 0 and is as long as shape and dtype say.
        offset = tensor.entries.get("offset", "0")
        length = tensor.entries.get("length", str(tensor.num_bytes))
        numbers = all(re.fullmatch("[0-9]{1,19}", text) for text in (offset, length))
        end = int(offset) + int(length) if numbers else -1
        if not numbers or int(length) != tensor.num_bytes or end > files[data]:
            raise CheckpointError(
                f"{path}: the data of weight '{weight}' is {length[:40]} bytes from byte"
                f" {offset[:40]} of {data.name}, which has {files[data]}; expected"
                f" {tensor.num_bytes} bytes within it.",
                hint="Copy or download both files again.",
            )
    return [path, *sorted(files)]


def _input(path: Path, value: ir.Value) -> OnnxInput:
    if not isinstance(value.type, ir.TensorType) or value.dtype not in TORCH_DTYPES:
        raise CheckpointError(
            f"{path}: input '{value.name}' is {value.type}; expected a tensor of numbers or bool."
        )
    if value.shape is None:
        raise CheckpointError(
            f"{path}: input '{value.name}' has no shape, not even a number of axes.",
            hint="Write its axes into the file: numbers, and names for dynamic ones.",
        )
    shape = tuple(dim if isinstance(dim, int) else dim.value or "" for dim in value.shape)
    return OnnxInput(value.name or "", value.dtype.numpy().name, shape)


# An ONNX file as ONNX Runtime computes it: the original that all made of it is compared with.


@dataclass(frozen=True)
class OnnxOriginal:
    """A file that was opened."""

    source: OnnxSource  # what the file holds
    runner: Runner  # runs it as it is written: unoptimised, without kernels of ours

    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the outputs of one run, in order."""
        arrays = [to_numpy(tensor) for tensor in inputs]
        named = zip(self.source.inputs, arrays, strict=True)
        found = self.runner.run({spec.name: array for spec, array in named})
        return tuple(to_torch(found[name]) for name in self.source.outputs)
