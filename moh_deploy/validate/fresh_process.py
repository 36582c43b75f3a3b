"""Compare a package with its vectors in a process that knows neither torch nor the user's code.

What is proven there is what a user of the package will see, and the memory of the two worlds does
not add up.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import cast

import moh_deploy
from moh_deploy import errors
from moh_deploy.package import Proof


def prove(root: Path, sizes: tuple[dict[str, int], ...]) -> Proof:
    """Run `moh-deploy verify` on a package.

    Args:
        root: The package.
        sizes: Dimension sizes of its vector sets.

    Returns:
        How well it agrees.

    Raises:
        ValidationError: It does not agree.
        MoHDeployError: The comparison failed, with the error of that process.
    """
    command = [
        sys.executable,
        "-m",
        "moh_deploy",
        "verify",
        str(root),
        "--kernels",
        "off",
        "--json",
    ]
    # The package may be on this process's path without being installed.
    home = str(Path(moh_deploy.__file__).parent.parent)
    path = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    try:
        answer = cast(dict[str, object], json.loads(done.stdout))
    except json.JSONDecodeError as error:
        raise errors.BackendError(
            f"the process that compares the package died with status {done.returncode}:"
            f" {done.stderr.strip()[-400:]}"
        ) from error
    if "error" in answer:
        raise _error(cast(dict[str, str | None], answer["error"]))
    return Proof(
        max_abs_error=float(cast(float, answer["max_abs_error"])),
        routing_agreement=float(cast(float, answer["routing_agreement"])),
        sizes=sizes,
    )


def _error(described: dict[str, str | None]) -> errors.MoHDeployError:
    kind = getattr(errors, described["type"] or "", errors.BackendError)
    assert issubclass(kind, errors.MoHDeployError)
    return kind(described["message"] or "", hint=described["hint"])
