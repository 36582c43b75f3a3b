"""ONNX Runtime's own quantiser, for products in int8."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx import TensorProto

from moh_deploy.system.staging import scratch_directory

_TOLD = ("onnx.quant.pre_process", "onnxruntime.quant")
"""What tells the quantiser not to ask for a pass before it: constants are folded by the export."""


def quantize_products(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """Return the model with products in int8: MatMulInteger of weights that are rounded once, a
    scale for each column, and of activations that are rounded when they are met (uint8, one scale
    for each tensor).

    Args:
        model: A model in float32. It is not changed.
        names: The Gemm and MatMul nodes, whose weights are stored matrices.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with scratch_directory("quantising") as scratch:
        # By way of files: a model may be larger than a message of protobuf can be.
        before, after = scratch / "float32.onnx", scratch / "int8.onnx"
        ir.save(model, before, external_data="float32.data")
        _tell(before, add=True)
        quantize_dynamic(
            before,
            after,
            per_channel=True,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["MatMul"],
            # A Gemm becomes a MatMul of this name, and an Add.
            nodes_to_quantize=[*names, *(f"{name}_MatMul" for name in names)],
            use_external_data_format=True,
            # Nodes of other domains have no types that could be inferred.
            extra_options={"MatMulConstBOnly": True, "DefaultTensorType": TensorProto.FLOAT},
        )
        _tell(after, add=False)
        return _loaded(after)


def _tell(path: Path, *, add: bool) -> None:
    proto = onnx.load(path, load_external_data=False)
    kept = [one for one in proto.metadata_props if one.key not in (_TOLD[0], "onnx.infer")]
    del proto.metadata_props[:]
    proto.metadata_props.extend(kept)
    if add:
        proto.metadata_props.add(key=_TOLD[0], value=_TOLD[1])
    path.write_bytes(proto.SerializeToString())


def _loaded(path: Path) -> ir.Model:
    """Return the model with its weights in memory: the files are about to go."""
    model = ir.load(path)
    ir.external_data.load_to_model(model)
    return model
