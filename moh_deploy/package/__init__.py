"""The package: the waist between PyTorch (which makes it) and the runtimes (which read it).

A package is a directory: `model.onnx` (and `model.onnx.data` above 1 GB), `manifest.json`,
`vectors.npz`. `docs/package-format.md` describes it.
"""

from moh_deploy.package.choices import (
    CHOICES,
    DENSE_DOMAIN,
    asked_choice,
    choices_for,
    current_choice,
    node_domains,
    projections,
    with_choices,
)
from moh_deploy.package.layer_nodes import LayerNodes, layer_nodes
from moh_deploy.package.manifest import (
    FORMAT_VERSION,
    Choice,
    ComputeType,
    KeptOperators,
    LayerInfo,
    Manifest,
    Proof,
    TensorInfo,
    Tuning,
)
from moh_deploy.package.onnx_package import MODEL_DATA_NAME, MODEL_NAME, OnnxPackage
from moh_deploy.package.router_nodes import router_nodes
from moh_deploy.package.vectors import VectorSet
from moh_deploy.package.writer import PackageWriter, check_output

__all__ = [
    "CHOICES",
    "DENSE_DOMAIN",
    "FORMAT_VERSION",
    "MODEL_DATA_NAME",
    "MODEL_NAME",
    "Choice",
    "ComputeType",
    "KeptOperators",
    "LayerInfo",
    "LayerNodes",
    "Manifest",
    "OnnxPackage",
    "PackageWriter",
    "Proof",
    "TensorInfo",
    "Tuning",
    "VectorSet",
    "asked_choice",
    "check_output",
    "choices_for",
    "current_choice",
    "layer_nodes",
    "node_domains",
    "projections",
    "router_nodes",
    "with_choices",
]
