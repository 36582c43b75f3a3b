"""Compiles the attention kernels of Triton, and writes them as a C++ source.

    python plugins/cuda/triton/compile.py --output build/cuda/triton_code.cc

Needs Triton and no GPU: its wheel brings an assembler. The source has the machine code of every
variant, and what a launch of it needs (launch/triton_code.h).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

sys.path.insert(0, str(Path(__file__).parent))

import attention
from variants import DTYPES, VARIANTS, Variant

POINTERS = ("query", "key", "value", "gates", "output")
LISTS = ("rows", "counts")
# Numbers of elements, which are multiples of 8 as a tensor's rows consist of whole 16 bytes.
WHOLE_VECTORS = 8
ALIGNED_BYTES = 16


@dataclass(frozen=True)
class Compiled:
    """A kernel as the library has it.

    Attributes:
        name: Of the kernel in its code.
        shared_bytes: That a block needs.
        asm: Its forms by Triton's names: ptx, cubin, ...
    """

    variant: Variant
    name: str
    shared_bytes: int
    asm: dict[str, str | bytes]

    @property
    def cubin(self) -> bytes:
        code = self.asm["cubin"]
        assert isinstance(code, bytes)
        return code


class Refused(Exception):
    """Triton made a kernel that our launch cannot serve: the text says why."""


def compile_variant(variant: Variant) -> Compiled:
    """Compile one kernel.

    Raises:
        Refused: It wants memory or a launch that the library does not give.
    """
    shape = variant.shape
    with knobs.compilation.scope():
        knobs.compilation.disable_line_info = True  # it names this machine's folders
        kernel = triton.compile(
            _source(variant),
            target=GPUTarget("cuda", variant.architecture, 32),
            options={
                "num_warps": shape.warps,
                "num_stages": shape.stages,
                "enable_fp_fusion": True,  # the default of some versions
            },
        )
    metadata = kernel.metadata
    wanted = {
        "global_scratch_size": 0,
        "profile_scratch_size": 0,
        "num_ctas": 1,
        "num_warps": shape.warps,
        "launch_cooperative_grid": False,
        "launch_pdl": False,
    }
    for name, value in wanted.items():
        if getattr(metadata, name, value) != value:
            raise Refused(f"{variant}: {name} is {getattr(metadata, name)}; expected {value}.")
    return Compiled(variant, metadata.name, metadata.shared, dict(kernel.asm))


def signature(dtype: str) -> dict[str, str]:
    """Return the types of the kernel's parameters, without those that are compiled in."""
    types = {}
    for name in attention.attend.arg_names:
        if name.isupper():
            continue
        if name in POINTERS:
            types[name] = f"*{DTYPES[dtype]}"
        elif name in LISTS:
            types[name] = "*i32"
        elif name == "ranges":
            types[name] = "*i64"
        elif name.endswith("_stride") or name == "ranges_batch":
            types[name] = "i64"
        else:
            types[name] = "fp32" if name == "scale_log2" else "i32"
    return types


def _source(variant: Variant) -> ASTSource:
    shape, names = variant.shape, attention.attend.arg_names
    constants = {
        "COLUMNS": shape.columns,
        "TILE_ROWS": shape.tile_rows,
        "TILE_KEYS": shape.tile_keys,
    }
    types = signature(variant.dtype)
    # What launch/attention_kernel.cu demands, and loads of 16 bytes follow from.
    multiples = dict.fromkeys((*POINTERS[:3], "output"), ALIGNED_BYTES)
    multiples |= {name: WHOLE_VECTORS for name in types if name.endswith("_stride")}
    multiples |= dict.fromkeys(("head_dim", "value_dim"), WHOLE_VECTORS)
    return ASTSource(
        fn=attention.attend,
        signature=types | dict.fromkeys(constants, "constexpr"),
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={
            (names.index(name),): [["tt.divisibility", multiple]]
            for name, multiple in multiples.items()
        },
    )


def source_text(kernels: Sequence[Compiled]) -> str:
    """Return the C++ source."""
    return "\n".join([
        f"// Written by plugins/cuda/triton/compile.py with Triton {triton.__version__}.",
        '#include "cuda/launch/triton_code.h"',
        "",
        "namespace moh::cuda {",
        "namespace {",
        "",
        *(line for number, one in enumerate(kernels) for line in _bytes_of(number, one.cubin)),
        "constexpr TritonCode kCodes[] = {",
        *(f"    {_entry(number, one)}," for number, one in enumerate(kernels)),
        "};",
        "",
        "}  // namespace",
        "",
        "TritonCodes triton_codes() { return {kCodes, std::size(kCodes)}; }",
        "",
        "}  // namespace moh::cuda",
        "",
    ])  # fmt: skip


def _bytes_of(number: int, code: bytes) -> Iterator[str]:
    yield f"alignas(16) constexpr unsigned char kCode{number}[] = {{"
    for at in range(0, len(code), 32):
        yield ",".join(map(str, code[at : at + 32])) + ","
    yield "};"
    yield ""


def _entry(number: int, kernel: Compiled) -> str:
    variant, shape = kernel.variant, kernel.variant.shape
    dtype = {"float16": "DType::kFloat16", "bfloat16": "DType::kBFloat16"}[variant.dtype]
    fields = (
        variant.architecture, dtype, shape.columns, shape.tile_rows, 32 * shape.warps,
        kernel.shared_bytes, f'"{kernel.name}"', f"kCode{number}", f"sizeof(kCode{number})",
    )  # fmt: skip
    return "{" + ", ".join(map(str, fields)) + "}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="the C++ source to write")
    arguments = parser.parse_args()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    knobs.cache.dir = str(arguments.output.parent / "triton-cache")
    kernels = [compile_variant(variant) for variant in VARIANTS]
    arguments.output.write_text(source_text(kernels))
    for one in kernels:
        print(f"{one.variant}: {len(one.cubin)} bytes, {one.shared_bytes} shared")


if __name__ == "__main__":
    main()
