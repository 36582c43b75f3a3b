from pathlib import Path

import pytest

from tests.cuda import resources
from tests.cuda.libraries import Emulator
from tests.cuda.resources import Resources
from tests.nightly import nightly, nightly_if

pytestmark = pytest.mark.usefixtures("needs_nvcc")

REPRESENTATIVE = ("attention_64", 90)
"""The kernels and the architecture that a push assembles: all others take minutes."""
_MASKED = "attend<float, {}, Block<64, 16>, true>"
SPILLS = {
    (_MASKED.format(192), 90): 224,
    (_MASKED.format(256), 90): 60,
    (_MASKED.format(256), 100): 340,
    (_MASKED.format(256), 120): 284,
}
"""Bytes of memory that a kernel takes on an architecture, by nvcc 13.0: float32 with a mask for
queries and heads of more than 128.

Sums take 96 or 128 of a thread's 255 registers at most, and no block of these heads has fewer. On
sm_100, 65 of 7792 instructions of the kernel for 256 read or write that memory. Tried, and each
spills: half the keys a tile, no minimum of resident blocks, offsets of the mask computed anew.
"""
ATTENTION = [
    pytest.param(
        source,
        architecture,
        id=f"{source.stem}-sm_{architecture}",
        marks=nightly_if((source.stem, architecture) != REPRESENTATIVE),
    )
    for source in resources.attention_sources()
    for architecture in resources.ARCHITECTURES
]


@pytest.fixture(scope="module")
def measured() -> tuple[Resources, ...]:
    return resources.measured()


@nightly  # nvcc compiles every kernel for every architecture
@pytest.mark.parametrize("architecture", resources.ARCHITECTURES)
def test_only_known_kernels_spill(measured: tuple[Resources, ...], architecture: int):
    """As much as is known, too: a kernel that spills less has to be written down as well."""
    ours = [item for item in measured if item.architecture == architecture]
    assert ours
    known = {kernel: size for (kernel, of), size in SPILLS.items() if of == architecture}
    assert {our.kernel: our.memory_bytes for our in ours if our.memory_bytes} == known


@nightly
def test_no_kernel_takes_more_registers_than_it_did(measured: tuple[Resources, ...]):
    """A kernel that needs more of them may run fewer blocks: `python -m tests.cuda.resources`
    takes over the new numbers, to be looked at."""
    allowed = resources.table()
    assert {item.kernel for item in measured} == set(allowed)
    assert [item for item in measured if item.registers > allowed[item.kernel]] == []


@nightly
@pytest.mark.parametrize(("source", "architecture"), ATTENTION)
def test_attention_keeps_its_registers_loads_and_blocks(
    emulator: Emulator, source: Path, architecture: int
):
    registers, allowed = resources.table(), resources.occupancy_table()
    for item in resources.measured_of((source,), (architecture,)):
        assert item.memory_bytes == SPILLS.get((item.kernel, architecture), 0), item
        assert item.registers <= registers[item.kernel], item
    for kernel, item in resources.occupancy(emulator, [source], (architecture,)).items():
        assert item.loads_per_64_products <= allowed[kernel].loads_per_64_products, kernel
        least = allowed[kernel].resident_blocks[architecture]
        assert item.resident_blocks[architecture] >= least, kernel


def test_warps_of_32_rows_load_half_as_much():
    """36 of 64 with 16 rows a warp; 20 are what keys, values and queries need with 32."""
    allowed = resources.occupancy_table()
    for block in ("Block<64, 32>", "Block<128, 32>"):
        assert allowed[f"attend<__half, 64, {block}, false>"].loads_per_64_products <= 20
    assert allowed["attend<__half, 64, Block<64, 16>, false>"].loads_per_64_products == 36


@pytest.mark.parametrize("architecture", [86, 89, 120])
@pytest.mark.parametrize("head_size", [80, 96, 128])
def test_a_second_block_fits_into_100_kib(architecture: int, head_size: int):
    kernel = resources.occupancy_table()[f"attend<__half, {head_size}, Block<64, 16>, false>"]
    assert kernel.resident_blocks[architecture] >= 2
