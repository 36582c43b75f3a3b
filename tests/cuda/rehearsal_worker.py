"""The worker of the GPU tests, without what a machine with a GPU does not have.

python -m tests.cuda.rehearsal_worker --device cpu ...
"""

import sys

for absent in ("moh_deploy", "pydantic", "onnx", "onnxruntime", "ml_dtypes", "pytest", "yaml"):
    sys.modules[absent] = None  # type: ignore[assignment]

from tests.gpu import worker  # noqa: E402

if __name__ == "__main__":
    worker.main()
