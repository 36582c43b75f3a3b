"""Example inputs from an npz file."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from moh_deploy.errors import ConfigError
from moh_deploy.frontend.load.model import ModelInput
from moh_deploy.package import Manifest
from moh_deploy.package.cache_buffers import without_room
from moh_deploy.system.npz import BFLOAT16, Array, read_npz
from moh_deploy.system.suggest import shortened

_SUPPORTED = ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")


def inputs_from_npz(path: Path) -> tuple[ModelInput, ...]:
    """Return the members of an npz file as inputs, in file order; all their axes are fixed.

    Raises:
        ConfigError: The file is missing, damaged, not an npz, or holds something that is no tensor.
    """
    arrays = read_npz(path, error=ConfigError)
    return tuple(ModelInput(n, tensor_of(array, f"{path}: '{n}'")) for n, array in arrays.items())


def inputs_of_package(arrays: Mapping[str, Array], manifest: Manifest) -> tuple[ModelInput, ...]:
    """Return arrays as the positional arguments of the model that a package was made from.

    Args:
        arrays: Inputs of the package; its original takes what is filled of caches in place. A cache
            may be empty: then nothing stands before the first token.
    """
    taken = without_room(arrays, manifest)
    ordered = {spec.name: taken[spec.name] for spec in manifest.inputs if spec.name in taken}
    dims = {
        spec.name: {axis: size for axis, size in enumerate(spec.shape) if isinstance(size, str)}
        for spec in manifest.inputs
    }
    return tuple(
        ModelInput(name, tensor_of(array, f"inputs: '{name}'", may_be_empty=True), dims[name])
        for name, array in ordered.items()
    )


def tensor_of(array: Array, place: str, *, may_be_empty: bool = False) -> torch.Tensor:
    """Return an array as a tensor, if that is a possible input.

    Args:
        place: Where it stands, for messages.

    Raises:
        ConfigError: It is empty, or of a dtype that no tensor has.
    """
    if 0 in array.shape and not may_be_empty:
        raise ConfigError(f"{place} has shape {list(array.shape)}; no size may be 0.")
    if array.dtype == BFLOAT16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    if array.dtype.name not in _SUPPORTED:
        raise ConfigError(
            f"{place} has dtype {array.dtype}, which is not supported.",
            hint=f"Supported: {shortened(_SUPPORTED)}, bfloat16.",
        )
    native = array.astype(array.dtype.newbyteorder("="))
    return torch.from_numpy(np.ascontiguousarray(native).reshape(array.shape))
