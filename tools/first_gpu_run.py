"""Run engines on a card with TensorRT for the first time: see docs/first-gpu-run.md.

It runs from the sources of moh-deploy, on the moh-deploy that is installed.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    # The tests are found first in the sources; moh_deploy is the installed one, if there is one.
    if find_spec("moh_deploy") is not None:
        import_module("moh_deploy")
    sys.path.insert(0, str(ROOT))
    if sys.argv[1:] == ["--serve"]:
        import_module("tests.gpu.first_worker").main()
        return 0
    code: int = import_module("tests.gpu.first_run").main(Path(__file__).resolve())
    return code


if __name__ == "__main__":
    sys.exit(main())
