"""Packages whose layers are run in another way, by size too: their nodes stand in branches then."""

from collections.abc import Mapping

import onnx
import onnx_ir as ir

from moh_deploy.errors import ConfigError
from moh_deploy.graph.choose_layers import choose_layers
from moh_deploy.package import LayerInfo, OnnxPackage, with_choices

Layers = tuple[LayerInfo, ...]


def chosen(package: OnnxPackage, choices: Mapping[str, str]) -> Layers | None:
    """Return the layers with these choices; None if they cannot have them, or do."""
    manifest = package.manifest
    try:
        layers = with_choices(manifest.layers, choices, dims=tuple(manifest.dims))
    except ConfigError:
        return None
    return None if layers == manifest.layers else layers


def chosen_by_size(package: OnnxPackage) -> Layers | None:
    """Return the layers with a choice by size, some recorded runs on each side of the bound."""
    for dim in package.manifest.dims:
        sizes = sorted({vector.sizes[dim] for vector in package.vectors})
        if len(sizes) > 1:
            return chosen(package, {f"all[{dim}<={sizes[0]}]": "dense", "all": "sparse"})
    return None


def run_so(model: onnx.ModelProto, layers: Layers) -> onnx.ModelProto:
    """Return the model with its nodes where these choices want them."""
    moved = ir.from_proto(model)
    choose_layers(moved, layers)
    return ir.to_proto(moved)
