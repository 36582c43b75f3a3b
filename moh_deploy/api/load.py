"""Load a package as a callable: arrays or tensors in, the same kind out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from moh_deploy.errors import ConfigError
from moh_deploy.package import Manifest, Runtime, TensorInfo
from moh_deploy.runtime.base import Deployed, Description, Runner, Variant
from moh_deploy.runtime.input_check import InputCheck
from moh_deploy.runtime.kernel_use import Kernels
from moh_deploy.runtime.models import runtime_for
from moh_deploy.runtime.open_runner import find_deployed
from moh_deploy.runtime.tensors import as_array, is_torch_tensor, shared_tensor
from moh_deploy.validate.reference.samples import check_ranges


def load(
    package_dir: Path | str,
    *,
    runtime: Runtime | None = None,
    kernels: Kernels = "auto",
    threads: int | None = None,
) -> CallablePackage:
    """Load a package, or an engine that was built from one, as a callable.

        model = moh_deploy.load("build/model")
        logits = model(images)

    Args:
        package_dir: The package, or the engine directory.
        runtime: `onnxruntime`, `openvino` or `onnxruntime-cuda`; None for what the package was
            tuned for, or else ONNX Runtime. An engine has its own.
        kernels: What runs MoH nodes, see `Variant`.
        threads: Threads within an operator; None lets the runtime choose.

    Raises:
        PackageError: It is neither of them, or has changed since it was written.
        BackendError: The runtime is not installed, or does not take the model.
    """
    model = find_deployed(package_dir)
    asked = runtime_for(runtime, model.preferred_runtime)
    return CallablePackage(
        model, model.open(Variant(runtime=asked, kernels=kernels, threads=threads))
    )


class CallablePackage:
    """A package in a runtime: call it like the model that it was made from. `load` returns one.

    Inputs and results share memory with the runtime where it can: on the CPU all but bfloat16
    results, in ONNX Runtime. Given a tensor of PyTorch, it returns tensors; they have no gradients.

    Attributes:
        inputs: Name, dtype and shape of each input, in the order of positional arguments.
        outputs: The same of each output.
    """

    def __init__(self, model: Deployed, runner: Runner) -> None:
        self.inputs: tuple[TensorInfo, ...] = model.manifest.inputs
        self.outputs: tuple[TensorInfo, ...] = model.manifest.outputs
        self._name, self._runner, self._check = model.name, runner, InputCheck(self.inputs)
        # An engine has profiles, and checks its sizes itself.
        self._manifest = model.manifest if isinstance(model.manifest, Manifest) else None

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """Run the model on inputs by position, or by name.

        Returns:
            Its output; a tuple of them, in the order of `outputs`, where there are several.

        Raises:
            ConfigError: An input is missing, unknown, given twice, or does not fit the model.
            BackendError: The runtime failed.
        """
        names = [spec.name for spec in self.inputs]
        if len(inputs) > len(names):
            raise ConfigError(
                f"{len(inputs)} inputs are given by position; {self._name} takes {len(names)}:"
                f" {', '.join(names)}."
            )
        given = dict(zip(names, inputs, strict=False))
        if twice := given.keys() & named.keys():
            raise ConfigError(f"input '{min(twice)}' is given by position and by name.")
        results = tuple(self.run({**given, **named}).values())
        return results[0] if len(results) == 1 else results

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Run the model on inputs by name, such as `past_key_values.0.key`; raises as a call does.

        Returns:
            Name to array or tensor, for every output.
        """
        arrays = {name: as_array(value, name) for name, value in inputs.items()}
        sizes = self._check.check(arrays)
        if self._manifest is not None:
            check_ranges(sizes, self._manifest)
        results = self._runner.run(arrays)
        return_tensors = any(map(is_torch_tensor, inputs.values()))
        return {
            spec.name: shared_tensor(results[spec.name]) if return_tensors else results[spec.name]
            for spec in self.outputs
        }

    def describe(self) -> Description:
        """Say which runtime and kernels run each layer."""
        return self._runner.describe()

    def close(self) -> None:
        """Give back what the runtime holds."""
        self._runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
