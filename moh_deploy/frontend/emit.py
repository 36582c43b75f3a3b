"""Translate a rewritten program to ONNX."""

import contextlib
import io
import logging
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from moh_deploy.errors import ExportError
from moh_deploy.frontend.fx.arrays import dtype_name
from moh_deploy.frontend.fx.graph import is_tensor, op, source_line, tensor
from moh_deploy.frontend.inputs.npz_inputs import inputs_of_package
from moh_deploy.frontend.inputs.sizes import dynamic_shapes
from moh_deploy.frontend.load.model import LoadedModel, positional, taking_tensors
from moh_deploy.frontend.quiet import muted, no_warnings
from moh_deploy.frontend.torch_ops import TRANSLATIONS
from moh_deploy.frontend.torch_ops.opaque import OPAQUE, translate_opaque
from moh_deploy.frontend.trace import headline
from moh_deploy.graph.load_model import drop_stack_traces
from moh_deploy.graph.stand_ins import register_stand_in, replace_stand_ins
from moh_deploy.ops import VERSION
from moh_deploy.ops.onnx_schema import register_schemas
from moh_deploy.ops.op_names import KERNEL_DOMAIN
from moh_deploy.package import OnnxPackage

DEFAULT_OPSET = 20


def emit(program: ExportedProgram, *, input_names: Sequence[str], opset: int) -> ir.Model:
    """Return the ONNX model of a program whose outputs are a flat tuple of tensors.

    Args:
        input_names: Names of the model's inputs, in the order of the program's user inputs.
        opset: Version of the standard operators.

    Raises:
        ExportError: If an operator has no translation.
    """
    register_schemas()
    register_stand_in()
    try:
        with quiet():
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=opset,
                custom_translation_table={**TRANSLATIONS, OPAQUE: translate_opaque},
                verbose=False,
            )
    except Exception as error:
        raise _untranslated(program, error) from error
    assert exported is not None
    model = exported.model
    replace_stand_ins(model)
    drop_stack_traces(model)
    model.opset_imports.setdefault(KERNEL_DOMAIN, VERSION)
    for value, name in zip(model.graph.inputs, input_names, strict=True):
        value.name = name
    return model


def _untranslated(program: ExportedProgram, error: BaseException) -> ExportError:
    """Return the error of a translation that failed, with the line of the user's code."""
    text = ""
    inner: BaseException | None = error
    while inner is not None:
        text, inner = text + str(inner), inner.__cause__
    place = _place(program, text)
    hint = "The exporter fails at it: write that line with other operators."
    read = (node for node in program.graph.nodes if is_tensor(node) and node.users)
    if any(tensor(node).dtype.is_complex for node in read):
        hint = (
            "ONNX has no complex numbers; products, sums and what moves them become pairs of real"
            " ones, other operators do not. Write that line with real numbers."
        )
    elif "No ONNX function found" in text:
        hint = "No operator set has it: write that line with products, sums and indexing instead."
    at = "" if place is None else f" at {place}"
    return ExportError(f"torch.onnx cannot translate the model{at}: {cause(error)}.", hint=hint)


def _place(program: ExportedProgram, text: str) -> str | None:
    """Return the line of the operator that an error of the exporter names, if it is found."""
    # "Error when translating node %cdist: call_function[target=torch.ops.aten.cdist.default]", or
    # of its optimiser: "for node 'node_split' (::SplitToSequence)".
    found = re.search(r"target=torch\.ops\.([\w.]+)|for node 'node_(\w+?)(?:_(\d+))?'", text)
    if found is None:
        return None
    target, name, number = found.groups("0")
    # What is translated is what an operator was taken apart into: `_cdist_forward` is of `cdist`.
    with quiet():
        taken_apart = program.run_decompositions()
    for nodes in (program.graph.nodes, taken_apart.graph.nodes):
        # The exporter numbers the nodes of an operator anew, in their order.
        alike = [node for node in nodes if str(node.target) == target or op(node) == name]
        if len(alike) > int(number):
            return source_line(alike[int(number)])
    return None


def output_types(program: ExportedProgram) -> Iterator[ir.DataType]:
    """Yield the dtypes of a program's outputs, which torch.onnx does not always keep."""
    output = next(node for node in program.graph.nodes if node.op == "output")
    for node in pytree.tree_leaves(output.args):
        if is_tensor(node):
            yield ir.DataType.from_numpy(np.dtype(dtype_name(tensor(node).dtype)))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Mute the exporter's prints and warnings about itself; failures still reach us."""
    noisy = muted("torch.onnx", "onnxscript", "onnx_ir", below=logging.ERROR)
    # This one prints what is raised as well.
    printing = muted("torch.export", below=logging.CRITICAL)
    with noisy, printing, no_warnings(), contextlib.redirect_stdout(io.StringIO()):
        yield


def cause(error: BaseException) -> str:
    """Return the innermost message: the exporter wraps it in advice for its own developers."""
    while error.__cause__ is not None:
        error = error.__cause__
    return headline(error)


# The export that PyTorch has by itself, without anything of ours: a baseline.


def write_plain_onnx(model: LoadedModel, package: OnnxPackage, path: Path) -> None:
    """Export a model with `torch.onnx.export` and its defaults.

    Args:
        model: The module or program; the sizes that a program takes are part of it.
        package: Says which inputs there are, and which of their sizes are dynamic.
        path: File to write; weights may lie beside it.

    Raises:
        ExportError: PyTorch cannot export it.
    """
    inputs = inputs_of_package(package.vectors[0].inputs, package.manifest)
    # The same names as the package's: by name no one can be taken for another.
    names = [item.name for item in inputs]
    export = partial(torch.onnx.export, dynamo=True, input_names=names, verbose=False)
    try:
        with quiet():
            if model.program is not None:
                export(model.program, (), path)
                return
            assert model.module is not None
            arguments = tuple(item.value for item in inputs)
            call = package.manifest.call or positional(names)
            with taking_tensors(model.module, call) as parameters:
                shapes = dynamic_shapes(parameters, inputs, bounds={})
                export(model.module, arguments, path, dynamic_shapes=shapes)
    except Exception as error:
        raise ExportError(
            f"torch.onnx.export cannot export the original by itself: {cause(error)}.",
            hint="Leave the baseline plain-onnx out, or name an ONNX file of your own.",
        ) from error
