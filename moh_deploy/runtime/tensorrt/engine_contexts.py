"""Run an engine on tensors of torch that are on the GPU: nothing is copied."""

import importlib.util
import os
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from moh_deploy.errors import BackendError, ConfigError
from moh_deploy.ops.cases import numpy_dtype
from moh_deploy.package import TensorInfo
from moh_deploy.runtime.tensorrt.flavour import Flavour
from moh_deploy.runtime.tensorrt.loading import LoadedEngine
from moh_deploy.system.npz import Array

_ALIGNMENT = 256  # bytes, of addresses that TensorRT takes


def is_torch(value: object) -> bool:
    """Tell whether something is a tensor of torch, without importing it."""
    # A caller with a tensor has imported torch; others should not wait for it.
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def stand_in(name: str, tensor: Any, *, counted: bool = False) -> Array:
    """Return an array of a tensor's dtype and shape that holds nothing, to be checked.

    Args:
        counted: It may be a number that counts: that is waited for, and returned.

    Raises:
        ConfigError: The tensor is not on the first GPU.
    """
    if not tensor.is_cuda or tensor.device.index not in (None, 0):
        raise ConfigError(
            f"input '{name}' is on {tensor.device}, expected a tensor on the first GPU.",
            hint="Move it: tensor.to('cuda:0'). CUDA_VISIBLE_DEVICES says which GPU is the first."
            " Arrays of numpy may be anywhere.",
        )
    dtype = numpy_dtype(str(tensor.dtype).removeprefix("torch."))
    if counted and not tensor.ndim and dtype.kind in "iu":
        number: Array = tensor.cpu().numpy()
        return number
    # One element seen many times: no memory for its size is taken.
    return np.broadcast_to(np.zeros((), dtype), tuple(tensor.shape))


class GpuContext:
    """Runs an engine on torch's current stream, without waiting for the end.

    Args:
        loaded: The engine.
        outputs: What it gives.
    """

    def __init__(self, loaded: LoadedEngine, outputs: tuple[TensorInfo, ...]) -> None:
        self._loaded, self._outputs = loaded, outputs
        self._context = loaded.engine.create_execution_context()
        self._profile = 0
        # Stream and end of the last run, except those that a graph captured.
        self._last: tuple[Any, Any] | None = None
        self._nothing: Any = None
        if self._context is None:
            raise BackendError(f"TensorRT makes no execution context.{loaded.log_tail()}")

    def run(self, inputs: Mapping[str, Any], profile: int) -> dict[str, Any]:
        """Enqueue one run; whatever is done on the same stream next sees its outputs.

        Args:
            inputs: Name to tensor, checked.
            profile: Which of the engine's profiles.

        Raises:
            ConfigError: A cache that is written in place would be written into a copy.
            BackendError: TensorRT refuses.
        """
        torch = sys.modules["torch"]
        device = next(iter(inputs.values())).device
        # Kept until the run is enqueued: torch reuses memory in the stream's order.
        read = {name: tensor.contiguous() for name, tensor in inputs.items()}
        for name, tensor in read.items():
            # What torch allocates is aligned: this is a part of something.
            if tensor.data_ptr() % _ALIGNMENT:
                read[name] = tensor.clone()
        for buffer in filter(None, (self._written_input(info.name) for info in self._outputs)):
            if read[buffer] is not inputs[buffer]:
                raise ConfigError(
                    f"input '{buffer}' is written in place, and is not contiguous or does not begin"
                    f" at a multiple of {_ALIGNMENT} bytes.",
                    hint="Give tensor.contiguous().clone(), and keep that.",
                )
        current = torch.cuda.current_stream(device)
        # Nothing outside of a graph can be waited for while it is captured.
        is_captured = torch.cuda.is_current_stream_capturing()
        stream = int(current.cuda_stream)
        if self._last is not None and current != self._last[0] and not is_captured:
            # All runs share the context's scratch memory.
            current.wait_event(self._last[1])
        # The profile before the shapes: they are checked against its sizes.
        if profile != self._profile:
            done = self._context.set_optimization_profile_async(profile, stream)
            self._must(done, f"profile {profile}")
            self._profile = profile
        for name, tensor in read.items():
            self._must(self._context.set_input_shape(name, tuple(tensor.shape)), name)
            self._bind(name, tensor)
        written = {
            output.name: self._output(output, read, torch, device) for output in self._outputs
        }
        self._must(self._context.execute_async_v3(stream), "the run")
        if not is_captured:
            self._last = current, current.record_event()
        return written

    def _bind(self, name: str, tensor: Any) -> None:
        address = tensor.data_ptr()
        if not address:
            # An empty tensor has no address, and TensorRT takes no tensor without one.
            self._nothing = tensor.new_empty(1) if self._nothing is None else self._nothing
            address = self._nothing.data_ptr()
        self._must(self._context.set_tensor_address(name, address), name)

    def _output(self, spec: TensorInfo, read: Mapping[str, Any], torch: Any, device: Any) -> Any:
        if (buffer := self._written_input(spec.name)) is not None:
            # A cache that is written in place: its memory is the output.
            self._bind(spec.name, read[buffer])
            return read[buffer]
        # Known from the input shapes now; -1 where it depends on what they hold.
        shape = tuple(self._context.get_tensor_shape(spec.name))
        if any(size < 0 for size in shape):
            raise BackendError(
                f"the shape of output '{spec.name}' depends on values, not on shapes:"
                f" {list(shape)}.",
                hint="Give arrays of numpy: they are run in another way.",
            )
        # New for each run: the caller may keep the last outputs.
        tensor = torch.empty(shape, dtype=getattr(torch, spec.dtype), device=device)
        self._bind(spec.name, tensor)
        return tensor

    def _written_input(self, name: str) -> str | None:
        """Return the input whose memory an output has to be; None: it has memory of its own."""
        ask = getattr(self._loaded.engine, "get_aliased_input_tensor", None)  # TensorRT 10.15
        return None if ask is None else ask(name) or None

    def _must(self, done: bool, what: str) -> None:
        if not done:
            raise BackendError(f"TensorRT refuses {what}.{self._loaded.log_tail()}")


# Run an engine on arrays of numpy, by Polygraphy's runner, which copies to the GPU and back.

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
