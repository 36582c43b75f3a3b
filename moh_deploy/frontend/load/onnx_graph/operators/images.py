"""Operators that change the size of images."""

from __future__ import annotations

from typing import cast

from torch.nn import functional

from moh_deploy.frontend.load.onnx_graph.call import NodeCall, Result
from moh_deploy.frontend.load.onnx_graph.operators.table import operator


@operator("Resize")
def _resize(call: NodeCall) -> Result:
    x = call.tensor(0)
    mode = call.attribute("mode", "nearest")
    place = call.attribute("coordinate_transformation_mode", "half_pixel")
    if call.attribute("antialias", 0) or "axes" in call.node.attributes:
        raise call.refused("smooths, or names its axes, which is not supported")
    kinds = {
        ("nearest", "asymmetric"): ("nearest", None),
        ("linear", "half_pixel"): ("linear", False),
        ("linear", "pytorch_half_pixel"): ("linear", False),
        ("linear", "align_corners"): ("linear", True),
        ("cubic", "half_pixel"): ("bicubic", False),
        ("cubic", "pytorch_half_pixel"): ("bicubic", False),
        ("cubic", "align_corners"): ("bicubic", True),
    }
    if (mode, place) not in kinds:
        raise call.refused(f"resizes by {mode} with {place}, which is not supported")
    kind, corners = kinds[mode, place]
    if kind == "nearest" and call.attribute("nearest_mode", "round_prefer_floor") != "floor":
        raise call.refused("rounds to the nearest pixel but by floor, which is not supported")
    if kind == "bicubic" and call.attribute("cubic_coeff_a", -0.75) != -0.75:
        raise call.refused("has a cubic coefficient other than -0.75, which is not supported")
    if kind == "linear":
        kind = {3: "linear", 4: "bilinear", 5: "trilinear"}[x.ndim]
    if call.has(3):
        size, factors = call.sizes(3, "sizes")[2:], None
    else:
        size, factors = None, [cast(float, number) for number in call.numbers(2, "scales")[2:]]
    return functional.interpolate(
        x,
        size=size,
        scale_factor=factors,
        mode=kind,
        align_corners=corners,
        recompute_scale_factor=False if factors else None,
    )


@operator("GridSample")
def _grid_sample(call: NodeCall) -> Result:
    kinds = {"linear": "bilinear", "bilinear": "bilinear", "nearest": "nearest", "cubic": "bicubic"}
    return functional.grid_sample(
        call.tensor(0),
        call.tensor(1),
        mode=kinds[call.attribute("mode", "linear")],
        padding_mode=call.attribute("padding_mode", "zeros"),
        align_corners=bool(call.attribute("align_corners", 0)),
    )
