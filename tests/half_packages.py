"""Packages in half precision that nothing protects: every node that can be is lowered."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from moh_deploy.graph.choose_layers import choose_layers
from moh_deploy.graph.load_model import infer_types
from moh_deploy.graph.precision_casts import lower_precision
from moh_deploy.graph.precision_policy import SOURCES, LowType, PrecisionPlan
from moh_deploy.graph.switch_by_size import without_switches
from moh_deploy.package import OnnxPackage, PackageWriter
from moh_deploy.package.writer import save_model

Stays = Callable[[ir.Node], bool]


def write_unprotected(
    package: OnnxPackage,
    output: Path,
    low: LowType = "float16",
    *,
    stays: Stays = lambda node: node.op_type == "MoHRouter",
) -> OnnxPackage:
    """Lower every node but those that `stays` names, prove nothing, and write the package."""
    model = ir.load(package.model_path)
    without_switches(model)
    infer_types(model)
    float32 = {n: "asked for" for n in model.graph if n.op_type in SOURCES or stays(n)}
    lower_precision(model, PrecisionPlan(low, float32))
    choose_layers(model, package.manifest.layers)
    with PackageWriter(output) as writer:
        save_model(model, package, writer.root)
        manifest = replace(package.manifest, precision=low, proof=None)
        return writer.finish(manifest, package.vectors)
