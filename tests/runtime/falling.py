"""A runtime that ends its process where it opens or returns some values."""

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moh_deploy.errors import ConfigError
from moh_deploy.package import OnnxPackage, TensorInfo
from moh_deploy.runtime.base import Description, Runner, Variant
from moh_deploy.system.npz import Array
from tests.kernel_library import NO_KERNELS


@dataclass(frozen=True)
class Falling(Runner):
    outputs: tuple[str, ...]
    inputs: tuple[TensorInfo, ...] = (TensorInfo("x", "float32", (2,)),)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        _fall_at("when it runs", self.outputs)
        if inputs["x"].size == 0:
            raise ConfigError("x is empty.", hint="Fill it.")
        print("what native code says is no answer", flush=True)
        return {name: inputs["x"] * np.float32(2) for name in self.outputs}

    def describe(self) -> Description:
        return Description("Falling 1.0", NO_KERNELS)


def open_falling(source: OnnxPackage | Path, variant: Variant) -> Falling:
    _fall_at("when it opens", variant.extra_outputs)
    assert not isinstance(source, OnnxPackage) or not source.vectors
    return Falling(("y", *variant.extra_outputs))


def _fall_at(name: str, outputs: tuple[str, ...]) -> None:
    if name in outputs or f"gates {name}" in outputs:
        os.kill(os.getpid(), signal.SIGSEGV)
