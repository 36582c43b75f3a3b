"""Build the engine that a benchmark compares another one with: the same without our kernels."""

from __future__ import annotations

from pathlib import Path

from moh_deploy.api.build import build
from moh_deploy.runtime.tensorrt.build_plan import HARDWARE
from moh_deploy.runtime.tensorrt.engine_reading import read_engine_dir
from moh_deploy.runtime.tensorrt.profiles import profile_text
from moh_deploy.system.progress import Progress


def build_plain_engine(
    engine: Path, package: Path, output: Path, progress: Progress | None = None
) -> None:
    """Build a package once more, as an engine of it was built, of TensorRT's own layers.

    Args:
        engine: The directory of the engine.
        package: What it was built from.
        output: The directory to write.
        progress: What to report steps to.

    Raises:
        PackageError: There is no engine, or it has changed.
        BackendError: TensorRT does not build here.
    """
    manifest = read_engine_dir(engine)
    levels = {theirs: ours for ours, theirs in HARDWARE.items()}
    build(
        package,
        backend=manifest.backend,
        output=output,
        precision=manifest.precision,
        profiles=[profile_text(profile) for profile in manifest.profiles],
        compute_capabilities=manifest.compute_capabilities,
        workspace=None if manifest.workspace_bytes is None else str(manifest.workspace_bytes),
        plain=True,
        version_compatible=manifest.version_compatible,
        hardware_compatibility=levels.get(manifest.hardware_compatibility or ""),
        progress=progress,
    )
