"""Refuse an export that cannot succeed, before PyTorch is imported and the model loaded."""

from __future__ import annotations

import shutil
from pathlib import Path

from moh_deploy.config.check_options import checked_config
from moh_deploy.config.export_config import ExportConfig
from moh_deploy.config.options import ExportOptions
from moh_deploy.errors import ConfigError, PackageError
from moh_deploy.ops.spec import MIN_OPSET
from moh_deploy.package.writer import check_package_output


def check_export(options: ExportOptions) -> ExportConfig:
    """Check the options of an export, as far as they can be without the model; return its
    configuration.

    Raises:
        PackageError: The output cannot be written, or the weights do not fit on its disk.
        CheckpointError: There is no model.
        ConfigError: A path, the operator set or the configuration is wrong.
    """
    check_package_output(options.output)
    config = checked_config(options)
    if options.opset is not None and options.opset < MIN_OPSET:
        raise ConfigError(f"opset is {options.opset}, expected {MIN_OPSET} or later.")
    needed = _weight_bytes(options)
    parent = next(place for place in options.output.resolve().parents if place.exists())
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise PackageError(
            f"disk full: {options.output} needs {needed} bytes for the weights, {free} bytes free.",
            hint="Free some space, or write to another disk.",
        )
    return config


def _weight_bytes(options: ExportOptions) -> int:
    """Return the size of the weights in a package; 0 where only loading the model tells."""
    # Pickled checkpoints may hold more than weights, and a dtype changes their size.
    if not isinstance(options.model, Path) or options.dtype is not None:
        return 0
    files = options.model.glob("*.safetensors") if options.model.is_dir() else [options.model]
    return sum(file.stat().st_size for file in files if file.suffix == ".safetensors")
