"""Runs a case of an op on the CUDA kernels, through their C interface."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np

from moh_deploy.ops import OPS
from moh_deploy.ops.cases import Case, find_mismatch, numpy_dtype
from moh_deploy.ops.spec import TensorType
from tests.cuda import abi
from tests.cuda.arguments import aggregated_attention_args, attention_args, router_args
from tests.cuda.memory import Guarded, HostMemory, Memory


class KernelError(Exception):
    """A kernel refused a case, failed, or wrote where it must not."""


@dataclass(frozen=True)
class Plan:
    """What an attention's choice is replaced by; None: as the library chooses."""

    tactic: str | None = None
    key_splits: int | None = None
    block: str | None = None
    kernel: str | None = None

    def __str__(self) -> str:
        named = f"{self.tactic or 'chosen'}x{self.key_splits or 'chosen'}"
        named = named if self.block is None else f"{named}-{self.block}"
        return named if self.kernel is None else f"{named} by {self.kernel}"


CHOSEN = Plan()
PLANS = (CHOSEN, *(Plan(tactic, splits) for tactic in abi.TACTICS for splits in (1, 3)))
"""For every attention; blocks with 16 rows a warp, unless the library chooses others."""
WIDE_PLANS = (
    Plan("sparse", 1, "64by32"),
    Plan("dense", 3, "64by32"),
    Plan("dense", 1, "128by32"),
    Plan("sparse", 3, "128by32"),
)
"""Blocks with 32 rows a warp."""


def plans_of(case: Case) -> tuple[Plan, ...]:
    """Return every way that a case can be run in."""
    if case.op != "MoHAttention":
        return (CHOSEN,)
    if not _has_wide_blocks(case):
        return PLANS
    # The kernels of float16 and bfloat16 are the same source: each takes every other plan.
    return (*PLANS, *WIDE_PLANS[case.dtype == "bfloat16" :: 2])


def _has_wide_blocks(case: Case) -> bool:
    """As `has_block` in plugins/cuda/launch/attention_plan.cu."""
    if case.dtype == "float32":
        return False
    query, _, value, _, mask, *_ = (*case.input_types(), None)
    assert query is not None
    assert value is not None
    heads = [int(case.attributes[name]) for name in ("q_num_heads", "kv_num_heads")]
    sizes = [
        item.shape[-1] if len(item.shape) == 4 else item.shape[-1] // count
        for item, count in zip((query, value), heads, strict=True)
    ]
    return max(sizes) <= 128 and (mask is None or _is_key_mask(mask))


def _is_key_mask(mask: TensorType) -> bool:
    """As `has_key_mask` in plugins/cuda/launch/attention_heads.h."""
    return mask.shape[-1] != 1 and set(mask.shape[-3:-1]) <= {1}


Placement = Callable[[abi.AttentionArgs], AbstractContextManager[None]]
"""Moves the tensors of an attention elsewhere, and the output back."""


class Kernels:
    """A library of kernels and the memory that they work on."""

    def __init__(
        self,
        library: ctypes.CDLL,
        *,
        memory: Memory | None = None,
        guards: bool = True,
        place: Placement = nullcontext,
    ) -> None:
        self._library = library
        self._memory = HostMemory() if memory is None else memory
        self._guards = guards
        self._place = place

    def find_mismatch(self, case: Case, plan: Plan = CHOSEN) -> str | None:
        """Run a case and say what is wrong with it, or return None."""
        try:
            return find_mismatch(case, self.run(case, plan))
        except KernelError as error:
            return f"{case}: {error}"

    def run(self, case: Case, plan: Plan = CHOSEN) -> list[np.ndarray]:
        """Return the output of a case; its bytes were meaningless before.

        Raises:
            KernelError: A call's status is not kOk, or a byte outside of the output was written.
        """
        try:
            return [self._run(case, plan)]
        finally:
            self._memory.clear()

    def _run(self, case: Case, plan: Plan) -> np.ndarray:
        (type_,) = OPS[case.op].shape_rule(case.input_types(), case.attributes)
        dtype = numpy_dtype(type_.dtype)
        output = self._blank(int(np.prod(type_.shape)) * dtype.itemsize)
        inputs = [_Input.of(self._memory, array) for array in case.inputs()]
        if case.op == "MoHRouter":
            self._route(case, inputs, output)
        elif case.op == "MoHAttention":
            self._attend(case, inputs, output, plan)
        else:
            self._attend_aggregated(case, inputs, output)
        self._check(output, "the output")
        return output.read().view(dtype).reshape(type_.shape)

    def _blank(self, size: int) -> Guarded:
        return Guarded(self._memory, size, guards=self._guards)

    def _check(self, guarded: Guarded, what: str) -> None:
        damage = guarded.find_damage()
        if damage is not None:
            raise KernelError(f"{what}: {damage}.")

    def _call(self, name: str, *arguments: object) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            texts = [self._library.moh_cuda_last_error()]
            if hasattr(self._library, "moh_emulator_error"):
                texts.append(self._library.moh_emulator_error())
            text = " ".join(text.decode() for text in texts)
            raise KernelError(f"{name}: {abi.STATUSES[status]}: {text}")

    def _route(self, case: Case, inputs: list[_Input], output: Guarded) -> None:
        shape = next(item.shape for item in inputs if item.address)
        args = router_args(case, inputs, output.address, int(np.prod(shape[:-1])))
        counts = self._blank(4 * (args.shared + args.routed))
        before = counts.read().view(np.int32)
        self._call("moh_cuda_router", ctypes.byref(args), counts.address, None)
        self._check(counts, "head_counts")
        gates = (
            output.read()
            .view(numpy_dtype(case.dtype))
            .reshape(args.tokens, args.shared + args.routed)
        )
        added = counts.read().view(np.int32) - before
        _check_counts(gates, added, args)

    def _attend(self, case: Case, inputs: list[_Input], output: Guarded, plan: Plan) -> None:
        args = attention_args(case, inputs, output.address)
        choice = self._choose(args, plan)
        size = ctypes.c_size_t()
        self._call(
            "moh_cuda_attention_workspace",
            ctypes.byref(args),
            ctypes.byref(choice),
            ctypes.byref(size),
        )
        workspace = self._blank(size.value)
        address = workspace.address if size.value else None
        with self._place(args):
            self._call(
                "moh_cuda_attention",
                ctypes.byref(args),
                ctypes.byref(choice),
                address,
                size.value,
                None,
            )
        self._check(workspace, "the workspace")

    def _choose(self, args: abi.AttentionArgs, plan: Plan) -> abi.AttentionChoice:
        device, choice = abi.Device(), abi.AttentionChoice()
        self._call("moh_cuda_device", ctypes.byref(device))
        self._call(
            "moh_cuda_attention_choose",
            ctypes.byref(args),
            ctypes.byref(device),
            abi.USUAL_OPEN_SHARE,
            ctypes.byref(choice),
        )
        if plan.tactic is not None:
            choice.tactic = abi.TACTICS[plan.tactic]
        if plan.key_splits is not None:
            choice.key_splits = plan.key_splits
        if plan != CHOSEN:
            choice.block = abi.BLOCKS[plan.block or "64by16"]
        if plan.kernel is not None:
            choice.kernel = abi.KERNELS[plan.kernel]
        return choice

    def _attend_aggregated(self, case: Case, inputs: list[_Input], output: Guarded) -> None:
        args = aggregated_attention_args(case, inputs, output.address)
        self._call("moh_cuda_aggregated_attention", ctypes.byref(args), None)


@dataclass(frozen=True)
class _Input:
    """A tensor in a kernel's memory; address None: it is absent."""

    address: int | None
    shape: tuple[int, ...]
    dtype: str

    @classmethod
    def of(cls, memory: Memory, array: np.ndarray | None) -> _Input:
        if array is None:
            return cls(None, (0,), "")
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        return cls(memory.put(flat), array.shape, array.dtype.name)


def _check_counts(gates: np.ndarray, added: np.ndarray, args: abi.RouterArgs) -> None:
    """A gate that is not 0 is a choice; one that is 0 may be, if its probability underflowed."""
    expected = (gates != 0).sum(0)
    total = args.tokens * (args.shared + args.top_k)
    if (added < expected).any() or int(added.sum()) != total:
        raise KernelError(f"head_counts grew by {added}; expected {expected}, {total} in all.")
