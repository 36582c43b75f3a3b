"""The candidates of the op benchmark, prepared so that a call is nothing but the op."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime as ort
import torch
from op_inputs import InputSet, Shape
from op_models import fused_models, moh_model
from ort_session import Unusable, kernel_session, plain_session

from moh_deploy.errors import MoHDeployError
from moh_deploy.runtime.kernel_use import KernelUse, require_kernels
from moh_deploy.runtime.onnxruntime.values import to_ort

DECOMPOSED = "decomposed"
SDPA = "torch SDPA"


@dataclass(frozen=True)
class Candidate:
    """One candidate at one share of active heads.

    Attributes:
        name: What computes.
        active: Share of active heads; dense candidates take no time less for a smaller one.
        run: Computes one of the input sets, by its number, into `output`.
        output: Written anew by each run; in the shape's layout.
        kernel: Of a candidate that is ours.
    """

    name: str
    active: float
    run: Callable[[int], object]
    output: np.ndarray
    kernel: KernelUse | None = None


@dataclass(frozen=True)
class Bench:
    """What all candidates of one shape share."""

    shape: Shape
    dtype: str
    threads: int
    sets: Sequence[InputSet]

    def moh(self, kernel: KernelUse, active: Sequence[float]) -> list[Candidate]:
        """Return MoHAttention on the kernel, one session for all shares.

        Raises:
            Unusable: ONNX Runtime refuses the library, or would not run the kernel.
        """
        session = _session(moh_model(self.shape, self.dtype), self.threads, kernel)
        return [self._ort_candidate("moh", session, share, kernel) for share in active]

    def dense_names(self) -> list[str]:
        """Return what could compute every head."""
        return [DECOMPOSED, *fused_models(self.shape), SDPA]

    def dense(self, name: str, active: float) -> Candidate:
        """Return one of them, with gates of one share.

        Raises:
            Unusable: ONNX Runtime has it not for this dtype.
        """
        if name == SDPA:
            return self._sdpa(active)
        build = moh_model if name == DECOMPOSED else fused_models(self.shape)[name]
        session = _session(build(self.shape, self.dtype), self.threads)
        return self._ort_candidate(name, session, active)

    def _ort_candidate(
        self,
        name: str,
        session: ort.InferenceSession,
        active: float,
        kernel: KernelUse | None = None,
    ) -> Candidate:
        output = np.empty(self.shape.query_shape, self.dtype)
        bindings = [_bind(session, _feeds(self.shape, item, active), output) for item in self.sets]
        return Candidate(
            name,
            active,
            lambda index: session.run_with_iobinding(bindings[index].binding),
            output,
            kernel,
        )

    def _sdpa(self, active: float) -> Candidate:
        output = np.empty(self.shape.query_shape, self.dtype)
        calls = [_sdpa_call(self.shape, item, active, output) for item in self.sets]
        return Candidate(SDPA, active, lambda index: calls[index](), output)


def _session(
    model: onnx.ModelProto, threads: int, kernel: KernelUse | None = None
) -> ort.InferenceSession:
    """Load a model; with a kernel it must run on it, as read from the session."""
    content = model.SerializeToString()
    if kernel is None:
        return plain_session(content, threads=threads)
    nodes = [node.name for node in model.graph.node]
    session, impl = kernel_session(content, nodes, kernel, threads=threads)
    try:
        require_kernels(kernel, impl)
    except MoHDeployError as error:
        raise Unusable(str(error)) from error
    return session


def _feeds(shape: Shape, inputs: InputSet, active: float) -> dict[str, np.ndarray]:
    feeds = {"Q": inputs.query, "K": inputs.key, "V": inputs.value, "gates": inputs.gates[active]}
    if shape.is_decode:
        feeds |= {f"new_{name}": _last_token(feeds[name]) for name in ("K", "V")}
    return feeds


def _last_token(cache: np.ndarray) -> np.ndarray:
    """[B, Hkv, T, D] to [B, 1, Hkv*D]."""
    return np.ascontiguousarray(cache[:, :, -1]).reshape(cache.shape[0], 1, -1)


@dataclass(frozen=True)
class _Bound:
    """A binding and the arrays whose memory it uses."""

    binding: ort.IOBinding
    arrays: tuple[np.ndarray, ...]


def _bind(
    session: ort.InferenceSession, feeds: Mapping[str, np.ndarray], output: np.ndarray
) -> _Bound:
    """Let a session read the feeds and write the output in place; a cache is updated in place."""
    binding = session.io_binding()
    names = [item.name for item in session.get_inputs()]
    values = {name: to_ort(feeds[name]) for name in names}
    values["Y"] = to_ort(output)
    values |= {f"present_{name}": values[name] for name in ("K", "V")}
    for name in names:
        binding.bind_ortvalue_input(name, values[name])
    for item in session.get_outputs():
        binding.bind_ortvalue_output(item.name, values[item.name])
    return _Bound(binding, (*feeds.values(), output))


def _sdpa_call(
    shape: Shape, inputs: InputSet, active: float, output: np.ndarray
) -> Callable[[], None]:
    query, key, value = (_torch(array) for array in (inputs.query, inputs.key, inputs.value))
    if not shape.is_decode:  # [B, S, H*D] to [B, H, S, D]
        query, key, value = (
            item.unflatten(-1, (-1, shape.head_dim)).transpose(1, 2) for item in (query, key, value)
        )
    weights = _torch(inputs.gates[active]).transpose(1, 2).unsqueeze(-1)  # [B, H, S, 1]
    result = _torch(output).view(_split_shape(shape))
    if not shape.is_decode:
        result = result.transpose(1, 2)  # [B, H, S, D]
    is_grouped = shape.num_kv_heads < shape.num_heads

    def call() -> None:
        heads = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=shape.is_causal, scale=shape.scale, enable_gqa=is_grouped
        )
        torch.mul(heads, weights, out=result)

    return call


def _split_shape(shape: Shape) -> tuple[int, ...]:
    if shape.is_decode:
        return shape.query_shape
    return (shape.batch, shape.seq_len, shape.num_heads, shape.head_dim)


def _torch(array: np.ndarray) -> torch.Tensor:
    """Return a tensor on the array's memory."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
