"""What other schedules of attention would take, by the simulation of makespan.py.

    python -m tests.cuda.schedules       prints the table of ADR 123

None of them exists. Each changes a single thing of the kernel; that of sm_90 is arithmetic on a
design. The times say which could be worth writing.
"""

import math
from collections.abc import Iterator
from itertools import product

from tests.cuda.makespan import (
    BLOCK_LATENCY,
    CARDS,
    TILE_LATENCY,
    Card,
    Kernel,
    Shape,
    Way,
    jobs_of,
    makespan_us,
    schedule,
    tile_clocks,
)

SHAPES = (
    Shape("ViT", 1, 16, 16, 196, 24),
    Shape("DiT-S", 2, 6, 6, 256, 64),
    Shape("DiT-XL", 2, 16, 16, 256, 72),
    Shape("DiT-XL, batch 8", 8, 16, 16, 256, 72),
    Shape("DiT-XL, batch 32", 32, 16, 16, 256, 72),
    Shape("LLaMA-512", 1, 32, 8, 512, 128, causal=True),
    Shape("LLaMA-2k", 1, 32, 8, 2048, 128, causal=True),
    Shape("LLaMA-8k", 1, 32, 8, 8192, 128, causal=True),
)
SHARE = 0.75
# Clocks until a block that stays has the first keys of its next rows.
_NEXT_ROWS = 600.0
# Of the peak of wgmma, what FlashAttention-3 is published to reach at long sequences.
_WGMMA, _WGMMA_SHARE = 2048, 0.8
TACTICS, BLOCKS = ("dense", "sparse"), ("64by16", "64by32", "128by32")


def now_us(card: Card, shape: Shape) -> float:
    ways = (Way(*way) for way in product(TACTICS, BLOCKS, (1, 2, 4)))
    return min(makespan_us(card, shape, way, SHARE) for way in ways)


def changed_us(
    card: Card, shape: Shape, *, tile: float = TILE_LATENCY, rows: float = BLOCK_LATENCY
) -> float:
    """The kernel without parts of the keys, with latencies of its own.

    Args:
        tile: Of a tile of keys. With two stages it waits for one barrier in place of two, and for
            no copy; that their memory leaves room for fewer blocks on cards with 100 KB is left
            out.
        rows: Of a tile of rows, other than the first of a multiprocessor. A block that stays
            asks for the next ones before it is done.
    """
    found = []
    for tactic, block in product(TACTICS, BLOCKS):
        kernel = Kernel.of(block, shape.head_dim)
        rates, resident = tile_clocks(kernel, card, shape, tile), kernel.resident(card)
        found.append(_us(card, shape, Way(tactic, block), kernel, rates, resident, rows))
    return min(found)


def sm90_us(card: Card, shape: Shape) -> float:
    """Blocks of 128 rows: two groups of warps multiply by wgmma, one copies by TMA; they stay."""
    size = 16 * math.ceil(shape.head_dim / 16)
    kernel = Kernel(128, 64, size, 128, resident_warps=2)
    scores = kernel.rows * kernel.tile_keys
    # Exponents of one group are computed while the other multiplies.
    tile = max(2 * scores * size / (_WGMMA * _WGMMA_SHARE), scores / 16)
    ways = (Way(tactic, "128by32") for tactic in TACTICS)
    rates = tile + 100, tile
    return min(_us(card, shape, way, kernel, rates, 1, _NEXT_ROWS / 2) for way in ways)


def _us(
    card: Card,
    shape: Shape,
    way: Way,
    kernel: Kernel,
    rates: tuple[float, float],
    resident: int,
    next_rows: float,
) -> float:
    room = card.multiprocessors * resident
    jobs = [
        (BLOCK_LATENCY if number < room else next_rows, tiles)
        for number, (_, tiles) in enumerate(jobs_of(shape, way, kernel, SHARE, by_pairs=False))
    ]
    microseconds = 2.0 + schedule(jobs, card.multiprocessors, resident, rates) / card.ghz / 1e3
    if way.tactic == "sparse":
        microseconds += 1.5 + 1.5 * math.ceil(shape.tokens * shape.group / 4096)
    return microseconds


def table() -> Iterator[str]:
    """Yield microseconds as it is, and with two stages, with blocks that stay, and for sm_90."""
    yield "| shape | " + " | ".join(card.name for card in CARDS) + " | H100, sm_90 |"
    yield "|---|" + "---|" * (len(CARDS) + 1)
    for shape in SHAPES:
        cells = []
        for card in CARDS:
            ring = changed_us(card, shape, tile=TILE_LATENCY / 2)
            stays = changed_us(card, shape, rows=_NEXT_ROWS)
            cells.append(f"{now_us(card, shape):.1f}, {ring:.1f}, {stays:.1f}")
        yield f"| {' | '.join([shape.name, *cells, f'{sm90_us(CARDS[0], shape):.1f}'])} |"


if __name__ == "__main__":
    print("\n".join(table()))
