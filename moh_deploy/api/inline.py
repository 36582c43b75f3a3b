"""Write a package's model in standard operators only, proven equal to the original."""

from __future__ import annotations

import os
from pathlib import Path

from moh_deploy.derive.forms import InlineReport, write_inlined
from moh_deploy.errors import ConfigError, PackageError
from moh_deploy.package import MODEL_NAME, OnnxPackage
from moh_deploy.system.progress import Progress, SilentProgress


def inline(
    package_dir: Path | str, output: Path | str, *, progress: Progress | None = None
) -> InlineReport:
    """Write the same model without functions and without any domain but ONNX's own.

    A package runs where a runtime knows ONNX's functions, which some do not. What is written here
    computes every head, and knows neither kernels nor layers: `verify` and all other commands work
    on the package. Opset, metadata and names of inputs and outputs stay; weights lie in a file
    beside the model, `OUTPUT.data`, where the package has them in one.

    Args:
        package_dir: The package, of any precision.
        output: The file to write, such as `model.onnx`. An earlier ONNX model is replaced.
        progress: What to report steps to.

    Raises:
        ConfigError: The output is inside of the package, or what the package was made from.
        PackageError: Not a package, the output cannot be written or is there and no ONNX model, or
            an operator is no standard one and has no body.
        ValidationError: What was made, run by ONNX Runtime without a library of kernels, differs
            from the original model on a recorded run. Nothing is written.
    """
    progress, output = progress or SilentProgress(), Path(output)
    # A package is replaced as a whole, and holds what its manifest lists: its own model, above all.
    if Path(package_dir).resolve() in output.resolve().parents:
        raise ConfigError(
            f"output is {output}, inside of the package {package_dir}, which holds nothing else.",
            hint="Name a file outside of it.",
        )
    if os.path.isdir(output):
        raise PackageError(
            f"{output} is a directory, expected a file to write the model to.",
            hint=f"Name the file: --output {output / MODEL_NAME}",
        )
    with progress.step("reading the package"):
        package = OnnxPackage.open(package_dir)
    return write_inlined(package, output, progress)
