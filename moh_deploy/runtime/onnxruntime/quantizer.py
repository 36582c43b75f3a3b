"""ONNX Runtime's own quantiser, for products in int8, and for weights in blocks of few bits."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from moh_deploy.graph.weights_in_blocks import BlockWeight
from moh_deploy.ops.nbits_product import BLOCK
from moh_deploy.system.npz import Array
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
        gemms = {node.name for node in model.graph if node.op_type == "Gemm"}
        model = ir.load(after)
        # It writes every Gemm as a MatMul and an Add. Those that stay in float32 keep their names:
        # they say which were kept.
        for node in model.graph:
            name = (node.name or "").removesuffix("_MatMul")
            if node.op_type == "MatMul" and name in gemms:
                node.name = name
        # Into memory: the files are about to go.
        ir.external_data.load_to_model(model)
        return model


def quantize_weight(weight: Array, bits: int) -> BlockWeight:
    """Round a weight to 4 or 8 bits: in each column, 32 numbers below each other share a scale.

    Args:
        weight: [K, N], float32.
    """
    with _own_log():
        from onnxruntime.quantization.matmul_nbits_quantizer import (
            DefaultWeightOnlyQuantConfig,
            MatMulNBitsQuantizer,
        )

        config = DefaultWeightOnlyQuantConfig(block_size=BLOCK, is_symmetric=True, bits=bits)
        # A model of one product at a time: of a whole one the quantiser would hold two copies.
        quantizer = MatMulNBitsQuantizer(_product_of(weight), algo_config=config)
        quantizer.process()
    (node,) = quantizer.model.model.graph.node
    stored = {
        initializer.name: initializer for initializer in quantizer.model.model.graph.initializer
    }
    packed, scales = (numpy_helper.to_array(stored[name]) for name in node.input[1:3])
    # ONNX Runtime 1.23 writes the scales as one list.
    return BlockWeight(packed, scales.reshape(packed.shape[:2]), bits)


def _product_of(weight: Array) -> onnx.ModelProto:
    rows, columns = weight.shape
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["tokens", rows])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["tokens", columns])],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph)


@contextmanager
def _own_log() -> Iterator[None]:
    """Let the quantiser, which sets up the log of the whole process and tells of every node, do so
    for itself alone."""
    root = logging.getLogger()
    before, level, disabled = list(root.handlers), root.level, root.manager.disable
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        root.handlers[:] = before
        root.setLevel(level)
        logging.disable(disabled)


def _tell(path: Path, *, add: bool) -> None:
    proto = onnx.load(path, load_external_data=False)
    names = (_TOLD[0], "onnx.infer")
    kept = [prop for prop in proto.metadata_props if prop.key not in names]
    del proto.metadata_props[:]
    proto.metadata_props.extend(kept)
    if add:
        proto.metadata_props.add(key=_TOLD[0], value=_TOLD[1])
    path.write_bytes(proto.SerializeToString())
