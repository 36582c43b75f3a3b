"""Write a package that runs the same heads for every token: the plain rival of routing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from moh_deploy.derive.prune import KeptBy, PruneReport, write_pruned
from moh_deploy.errors import ConfigError
from moh_deploy.package import OnnxPackage, check_package_output
from moh_deploy.system.progress import Progress, SilentProgress


def prune(
    package_dir: Path | str,
    output: Path | str,
    *,
    keep: int | str,
    by: KeptBy = "load",
    inputs: Sequence[Path | str] = (),
    allow_whole: bool = False,
    progress: Progress | None = None,
) -> PruneReport:
    """Keep the heads of each layer that are used most, for every token, and drop the routers.

    The weights of the other heads are cut: columns of query, key and value projections, rows of
    output projections. Each head that stays has its mean gate over the tokens that were counted.
    It is what a router has to beat, and another model than the original: nothing is trained again.

    Args:
        package_dir: A package in float32.
        output: The package directory to write.
        keep: Heads that each layer keeps: a number, or a share of each layer's such as `75%`.
        by: `load`: the heads that are open for most tokens; `gate`: those whose gates are largest
            on average.
        inputs: npz files, or directories of them, to count heads on; without, the recorded runs.
            Padding is not counted where the package names its mask.
        allow_whole: Let a layer whose weights cannot be cut stay whole, with gates of 0 for the
            heads that are not kept.
        progress: What to report steps to.

    Raises:
        ConfigError: An option or file does not fit, the package is not in float32, or a layer
            cannot be pruned; the message names each with its reason.
        PackageError: Not a package, or the output cannot be written.
        ValidationError: The package is not equal to its original, or what was made differs from the
            package with the same gates fed to it. Nothing is written.
    """
    progress, output = progress or SilentProgress(), Path(output)
    if by not in ("load", "gate"):
        raise ConfigError(f"by is '{by}', expected load or gate.")
    check_package_output(output, made_of=Path(package_dir))
    with progress.step("reading the package"):
        package = OnnxPackage.open(package_dir)
    return write_pruned(
        package,
        output,
        progress,
        keep=keep,
        by=by,
        inputs=[Path(path) for path in inputs],
        allow_whole=allow_whole,
    )
