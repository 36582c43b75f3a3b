"""The worker of the GPU tests on the emulator, with an illegal access where a test wants one.

    MOH_ILLEGAL_ACCESS=TEXT python -m tests.cuda.rehearsal_worker --device cpu ...

lets the contract case whose arguments, as JSON, contain the text read what is not there. What a
machine with a GPU does not have is not there for it, either.
"""

import ctypes
import json
import os
import sys

for absent in ("moh_deploy", "pydantic", "onnx", "onnxruntime", "ml_dtypes", "pytest", "yaml"):
    sys.modules[absent] = None  # type: ignore[assignment]

from tests.cuda import abi  # noqa: E402
from tests.gpu import correctness, worker  # noqa: E402
from tests.gpu.kernels import Bench  # noqa: E402
from tests.gpu.steps import Facts  # noqa: E402


def case(bench: Bench, **arguments: object) -> Facts:
    if os.environ["MOH_ILLEGAL_ACCESS"] in json.dumps(arguments):
        nowhere = 8
        args = abi.RouterArgs(
            dtype=1, routed_logits=nowhere, gates=nowhere, tokens=1, routed=4, top_k=2
        )
        bench.library.call("moh_cuda_router", ctypes.byref(args), None, None)
    return correctness.case(bench, **arguments)


if __name__ == "__main__":
    if "MOH_ILLEGAL_ACCESS" in os.environ:
        worker.JOBS["case"] = case
    worker.main()
