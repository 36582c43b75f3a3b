"""What a user would run instead of our packages in low precision: the plain export of the same
model, as OpenVINO and ONNX Runtime make it faster by themselves.

| peer | rounded by |
|---|---|
| OpenVINO, f32 and bf16 | OpenVINO's own hint |
| OpenVINO, int8 (the rest f32, bf16) | NNCF if installed, calibrated on other runs |
| ONNX Runtime, float32 | nothing |
| ONNX Runtime, int8 | its dynamic quantiser: products with stored weights, as in ours |
"""

import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from onnxruntime.quantization import QuantType, quantize_dynamic
from ort_session import plain_session

from moh_deploy.system.npz import Array

Inputs = Mapping[str, Array]


class Peer(Protocol):
    """A plain export in one runtime and precision, bound to its inputs."""

    name: str
    runtime: str

    def run(self) -> object:
        """Run once; what it returns may be overwritten by the next run."""

    def output(self) -> Array:
        """Run once and return the first output."""


class InOpenvino:
    """A model compiled for the sizes of its inputs."""

    runtime = "openvino"

    def __init__(self, name: str, model: Any, feeds: Inputs, hint: str, threads: int) -> None:
        import openvino

        self.name = name
        self._feeds = feeds
        model.reshape({key: list(feed.shape) for key, feed in feeds.items()})
        settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads}
        compiled = openvino.Core().compile_model(
            model, "CPU", {**settings, "PERFORMANCE_HINT": "LATENCY"}
        )
        self._request = compiled.create_infer_request()

    def run(self) -> object:
        return self._request.infer(self._feeds, share_inputs=True, share_outputs=True)

    def output(self) -> Array:
        self.run()
        return np.array(self._request.get_output_tensor(0).data)


class InOnnxRuntime:
    """A model in ONNX Runtime, without kernels of ours."""

    runtime = "onnxruntime"

    def __init__(self, name: str, model: Path, feeds: Inputs, threads: int) -> None:
        self.name = name
        self._session = plain_session(model, threads=threads)
        self._feeds = dict(feeds)

    def run(self) -> object:
        return self._session.run(None, self._feeds)

    def output(self) -> Array:
        return np.asarray(self._session.run(None, self._feeds)[0])


def plain_peers(
    plain: Path, inputs: Inputs, calibration: Sequence[Inputs], threads: int, scratch: Path
) -> Iterator[Peer]:
    """Open a plain export in every runtime and precision that is compared with.

    Args:
        inputs: What each is run on; matched with the export's inputs by their order.
        calibration: Runs that static quantisation is calibrated on, of any sizes.
        scratch: Where quantised models are written.
    """
    import openvino

    core = openvino.Core()
    names = [item.any_name for item in core.read_model(plain).inputs]
    feeds = dict(zip(names, inputs.values(), strict=True))
    for hint in ("f32", "bf16"):
        yield InOpenvino(f"{plain}, {hint}", core.read_model(plain), feeds, hint, threads)
    if importlib.util.find_spec("nncf") is not None:
        samples = [dict(zip(names, run.values(), strict=True)) for run in calibration]
        quantised = _calibrated(core.read_model(plain), samples)
        for hint in ("f32", "bf16"):
            yield InOpenvino(f"{plain}, int8 by NNCF and {hint}", quantised, feeds, hint, threads)
    yield InOnnxRuntime(f"{plain}, float32", plain, feeds, threads)
    dynamic = scratch / "int8.onnx"
    # Products alone, as in ours: convolutions in int8 are slower. One scale for each weight, as by
    # default: ONNX Runtime 1.32 fails on weights of three axes with a scale for each column.
    quantize_dynamic(
        plain,
        dynamic,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["MatMul"],
        use_external_data_format=True,
    )
    yield InOnnxRuntime(f"{plain}, int8", dynamic, feeds, threads)


def _calibrated(model: Any, samples: Sequence[Inputs]) -> Any:
    """Return a model whose products are in int8 where NNCF puts them for a transformer."""
    # What it tells of itself, from its import on, is not what --json prints.
    with redirect_stdout(sys.stderr):
        import nncf

        return nncf.quantize(
            model,
            nncf.Dataset(list(samples)),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(samples),
        )
