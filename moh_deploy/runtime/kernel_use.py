"""Say which kernels a model is to run on, and which it ran on."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from moh_deploy.package import ComputeType
from moh_deploy.report.json import HIDDEN, in_json

Kernels = Literal["auto", "off", "require"]

BFLOAT16_SETS = ("amx_bf16", "avx512_bf16")
"""The instruction sets with a matrix product of bfloat16 operands."""


@dataclass(frozen=True)
class KernelUse:
    """The kernel library that a session uses, or why none, and in which arithmetic it computes.

    Which nodes run on the library is in `Description.layer_impl`.

    Attributes:
        library: Path of the library, whose name reports show; None if the session has none.
        reason: Why it has none; None if it has one.
        instruction_set: What the kernels run on, such as `avx2`; None without a library, and of one
            for GPUs, whose products take what the graph says.
        asked_compute_type: Operands of the matrix products that the package allows.
        emulated_dtype: The dtype that the runtime has no kernels for, so that every operator in it
            computes in float32 and its results are rounded; None if there is none.
        no_kernel_for: Operators of the model that the library has no kernel for, such as
            `moh::MoHTokenConv`: their nodes run as function bodies. Those that run so by choice are
            not among them.
    """

    library: Path | None
    reason: str | None
    instruction_set: str | None
    asked_compute_type: ComputeType = "float32"
    emulated_dtype: str | None = None
    no_kernel_for: tuple[str, ...] = field(default=(), metadata=HIDDEN)

    @property
    @in_json("library")
    def _library_name(self) -> str | None:
        # Reports are handed on, and where software lies on this machine is its user's matter.
        return None if self.library is None else self.library.name

    @property
    @in_json("no_kernel_for")
    def _without_kernel(self) -> str | None:
        return ", ".join(self.no_kernel_for) or None

    @property
    @in_json()
    def compute_type(self) -> ComputeType:
        """The operands that the matrix products of attention take, accumulated in float32."""
        # The package allows bfloat16, it does not ask for it: without such a product in hardware,
        # emulating one would be slower and less precise than float32.
        return self.asked_compute_type if self.instruction_set in BFLOAT16_SETS else "float32"

    def describe(self) -> str:
        """Return the line that reports show."""
        if self.emulated_dtype is None:
            return self._library_text()
        return (
            f"{self._library_text()}\n{self.emulated_dtype} is emulated, since the runtime has no"
            " kernels for it: operators compute in float32, and every result is rounded"
        )

    def _library_text(self) -> str:
        if self.library is None:
            return f"kernels: none ({self.reason})"
        text = f"kernels: {self._library_name}"
        if self.instruction_set is not None:
            text = f"{text}, {self.instruction_set}, products of {self.compute_type}"
        if self.instruction_set is not None and self.compute_type != self.asked_compute_type:
            asked = self.asked_compute_type
            able = " and ".join(BFLOAT16_SETS)
            text = f"{text} (the package allows {asked}, which {able} alone have)"
        if self.no_kernel_for:
            text = f"{text}; it has none for {', '.join(self.no_kernel_for)}"
        return text
