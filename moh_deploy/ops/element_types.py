"""Dtype names of this package to and from the element types of ONNX."""

from __future__ import annotations

import onnx

from moh_deploy.ops.spec import OpDim, TensorType

ELEMENT_TYPES = {
    "float32": onnx.TensorProto.FLOAT,
    "float16": onnx.TensorProto.FLOAT16,
    "bfloat16": onnx.TensorProto.BFLOAT16,
    "bool": onnx.TensorProto.BOOL,
    "int64": onnx.TensorProto.INT64,
    "uint8": onnx.TensorProto.UINT8,
}
_DTYPES: dict[int, str] = {element: dtype for dtype, element in ELEMENT_TYPES.items()}


def to_type_proto(type_: TensorType) -> onnx.TypeProto:
    """Return the ONNX type of a value; an unknown size stays unknown."""
    return onnx.helper.make_tensor_type_proto(ELEMENT_TYPES[type_.dtype], type_.shape)


def from_type_proto(proto: onnx.TypeProto | None) -> TensorType | None:
    """Return dtype and shape of an ONNX type, or None where the rank is not known.

    An element type that no op takes is named by its ONNX name, for the error message.
    """
    if proto is None or not proto.tensor_type.HasField("shape"):
        return None
    element = proto.tensor_type.elem_type
    dtype = _DTYPES.get(element) or onnx.TensorProto.DataType.Name(element).lower()
    return TensorType(dtype, tuple(_dim(dim) for dim in proto.tensor_type.shape.dim))


def _dim(dim: onnx.TensorShapeProto.Dimension) -> OpDim:
    return dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None
