"""A runtime that is not there: directories with a `made_up.txt` that names a package, which runs in
onnx's reference evaluator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import onnx
from onnx.reference import ReferenceEvaluator

from moh_deploy.package import Manifest, OnnxPackage, TensorInfo
from moh_deploy.runtime.base import AS_IT_IS, Deployed, Description, Runner, Variant
from moh_deploy.runtime.kernel_use import KernelUse
from moh_deploy.system.npz import Array


@dataclass(frozen=True)
class MadeUpDir(Deployed):
    """A directory of the made-up runtime."""

    root: Path
    is_compiled: ClassVar[bool] = True

    @staticmethod
    def is_one(path: Path) -> bool:
        return (path / "made_up.txt").is_file()

    @property
    def name(self) -> str:
        return f"made-up {self.root}"

    @cached_property
    def package(self) -> OnnxPackage:
        return OnnxPackage.open((self.root / "made_up.txt").read_text())

    @property
    def manifest(self) -> Manifest:
        return self.package.manifest

    def made_from(self, package: Path | None, *, staged: bool = False) -> OnnxPackage:
        return self.package

    def open(self, variant: Variant = AS_IT_IS) -> MadeUpRunner:
        evaluator = ReferenceEvaluator(onnx.load(self.package.model_path))
        outputs = tuple(output.name for output in self.manifest.outputs)
        return MadeUpRunner(self.manifest.inputs, outputs, evaluator)


@dataclass(frozen=True)
class MadeUpRunner(Runner):
    """A package in onnx's reference evaluator."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[str, ...]
    _evaluator: ReferenceEvaluator

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        found = self._evaluator.run(list(self.outputs), dict(inputs))
        return dict(zip(self.outputs, found, strict=True))

    def describe(self) -> Description:
        return Description("made-up 1.0", KernelUse(None, "it has none", None))


def write_made_up(root: Path, package: OnnxPackage) -> Path:
    """Write what `MadeUpDir` runs."""
    root.mkdir()
    (root / "made_up.txt").write_text(str(package.root))
    return root
