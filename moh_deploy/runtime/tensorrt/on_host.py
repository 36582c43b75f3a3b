"""Run an engine on arrays of numpy, by Polygraphy's runner, which copies to the GPU and back."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from moh_deploy.errors import BackendError
from moh_deploy.runtime.tensorrt.flavour import Flavour
from moh_deploy.runtime.tensorrt.loading import LoadedEngine
from moh_deploy.system.npz import Array

_SWITCH = "POLYGRAPHY_USE_TENSORRT_RTX"
INSTALL = "pip install 'moh-deploy[polygraphy]'"


class HostContext:
    """Polygraphy's `TrtRunner`, active until it is closed.

    Args:
        loaded: The engine.
        flavour: Which TensorRT.

    Raises:
        BackendError: Polygraphy is missing, set to the other TensorRT, or fails.
    """

    def __init__(self, loaded: LoadedEngine, flavour: Flavour) -> None:
        choose_polygraphy(flavour)
        from polygraphy.backend.trt import TrtRunner
        from polygraphy.exception import PolygraphyException

        self._failure, self._loaded = PolygraphyException, loaded
        self._runner = TrtRunner(loaded.engine, name="moh-deploy")
        self._try(self._runner.activate)
        self._profile = 0

    def run(self, inputs: Mapping[str, Array], profile: int) -> dict[str, Array]:
        """Run once, and wait for the outputs.

        Args:
            inputs: Name to array, checked.
            profile: Which of the engine's profiles.

        Raises:
            BackendError: TensorRT refuses.
        """
        if profile != self._profile:
            self._try(lambda: self._runner.set_profile(profile))
            self._profile = profile
        found: Mapping[str, Array] = self._try(
            # Checked by `Engine` already, with messages of its own.
            lambda: self._runner.infer(dict(inputs), check_inputs=False)
        )
        # The runner's arrays are views of memory that the next run writes to.
        return {name: np.array(array) for name, array in found.items()}

    def close(self) -> None:
        """Give the GPU's memory back."""
        self._runner.deactivate()

    def _try(self, call: Any) -> Any:
        try:
            return call()
        # Of CUDA's runtime, which Polygraphy looks for.
        except (self._failure, OSError) as error:
            raise BackendError(f"TensorRT failed: {error}.{self._loaded.log_tail()}") from error


def choose_polygraphy(flavour: Flavour) -> None:
    """Let Polygraphy use this TensorRT: it decides once a process, when it is imported.

    Raises:
        BackendError: It is missing, or has decided otherwise.
    """
    if importlib.util.find_spec("polygraphy") is None:
        raise BackendError(
            "Polygraphy is not installed, which runs engines on arrays of numpy.", hint=INSTALL
        )
    is_rtx = flavour.name == "tensorrt-rtx"
    # Polygraphy reads the variable once, when it is imported; afterwards it can only be asked.
    if "polygraphy" not in sys.modules:
        os.environ[_SWITCH] = "1" if is_rtx else "0"
    from polygraphy import config

    if is_rtx != config.USE_TENSORRT_RTX:
        raise BackendError(
            f"Polygraphy was imported for the other TensorRT, and this engine is of"
            f" {flavour.title}.",
            hint=f"Set {_SWITCH}={int(is_rtx)}, and run engines of both in different processes.",
        )
