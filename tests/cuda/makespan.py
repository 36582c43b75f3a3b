"""A simulation of the attention kernel's schedule: every block of a launch on every multiprocessor.

    python -m tests.cuda.makespan        prints the table of benchmarks/RESULTS.md

Nothing here is measured. Gates are drawn, rows are listed and cut into tiles as the kernels do it,
and blocks are handed out in the order of the grid to whoever has room. What a tile of keys costs is
arithmetic on published rates; the library's model (plugins/cuda/launch/attention_model.cu) has the
same rates, and says in closed form what this follows block by block.
"""

from __future__ import annotations

import ctypes
import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tests.cuda import abi

Job = tuple[float, float]
"""A block: clocks until it has its first keys, and tiles of keys."""


@dataclass(frozen=True)
class Card:
    """A GPU, by published figures.

    Attributes:
        multiply_adds: Of a multiprocessor's tensor cores by clock, 16 bits with float32 sums, as
            mma.sync reaches them.
        l2_bytes: Of a multiprocessor by clock.
    """

    name: str
    multiprocessors: int
    compute_capability: int
    ghz: float
    multiply_adds: float
    l2_bytes: float
    shared_kib: int

    def device(self) -> abi.Device:
        return abi.Device(self.multiprocessors, self.compute_capability)


CARDS = (
    Card("H100", 132, 90, 1.70, 1300, 39, 228),
    Card("A100", 108, 80, 1.41, 1024, 47, 164),
    Card("RTX 4090", 128, 89, 2.52, 256, 16, 100),
)


@dataclass(frozen=True)
class Shape:
    """An attention in float16: B, H, Hkv, N, D."""

    name: str
    batch: int
    heads: int
    kv_heads: int
    tokens: int
    head_dim: int
    causal: bool = False

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads

    def args(self) -> abi.AttentionArgs:
        return abi.AttentionArgs(
            dtype=abi.DTYPES["float16"],
            batch=self.batch,
            q_heads=self.heads,
            kv_heads=self.kv_heads,
            queries=self.tokens,
            keys=self.tokens,
            head_dim=self.head_dim,
            value_dim=self.head_dim,
            scale=1.0,
            causal=self.causal,
        )


SHAPES = (
    Shape("ViT", 1, 16, 16, 196, 24),
    Shape("DiT", 2, 16, 16, 256, 72),
    Shape("DiT-24", 1, 24, 24, 256, 72),
    Shape("LLaMA-512", 1, 32, 8, 512, 128, causal=True),
    Shape("generic", 1, 32, 32, 1024, 64),
    Shape("LLaMA-2k", 1, 32, 8, 2048, 128, causal=True),
)
SHARES = (1.0, 0.9, 0.75, 0.5, 0.25)


@dataclass(frozen=True)
class Kernel:
    """An instance of `attend` in 16 bits without a mask, as it is compiled."""

    rows: int
    warp_rows: int
    head_size: int
    tile_keys: int
    resident_warps: int

    @classmethod
    def of(cls, block: str, head_dim: int) -> Kernel:
        rows, warp_rows = (int(number) for number in block.split("by"))
        size = next(size for size in (32, 64, 80, 96, 128) if head_dim <= size)
        if warp_rows == 32:
            keys, warps = 64 if size <= 64 else 32, 8
        else:
            keys, warps = 32 if size == 128 else 64, 16 if size == 32 else 12
        return cls(rows, warp_rows, size, keys, resident_warps=warps)

    @property
    def warps(self) -> int:
        return self.rows // self.warp_rows

    @property
    def shared_bytes(self) -> int:
        """Queries, keys and values, 16 bytes longer each; token, head and gate of a row."""
        return (self.rows + 2 * self.tile_keys) * (2 * self.head_size + 16) + 12 * self.rows

    def resident(self, card: Card) -> int:
        by_memory = card.shared_kib * 1024 // (self.shared_bytes + 1024)
        return min(self.resident_warps // self.warps, by_memory)


@dataclass(frozen=True)
class Way:
    """A choice: tactic, parts of the keys, block."""

    tactic: str
    block: str = "64by16"
    key_splits: int = 1

    def __str__(self) -> str:
        return f"{self.tactic} {self.block}" + (f" /{self.key_splits}" * (self.key_splits > 1))

    def choice(self) -> abi.AttentionChoice:
        return abi.AttentionChoice(
            abi.TACTICS[self.tactic], self.key_splits, abi.BLOCKS[self.block], None
        )

    @classmethod
    def of(cls, choice: abi.AttentionChoice) -> Way:
        tactic = next(name for name, number in abi.TACTICS.items() if number == choice.tactic)
        block = next(name for name, number in abi.BLOCKS.items() if number == choice.block)
        return cls(tactic, block, choice.key_splits)


def open_rows(shape: Shape, share: float, seed: int = 0) -> list[np.ndarray]:
    """Return the tokens of each pair's open rows, in order: half of the open heads are shared by
    all tokens, the others are drawn for each."""
    rng = np.random.default_rng(seed)
    count = round(shape.heads * share)
    shared = count // 2 if share < 1 else shape.heads
    pairs = []
    for _ in range(shape.batch):
        rank = rng.random((shape.tokens, shape.heads))
        rank[:, :shared] = 2
        is_open = rank >= np.sort(rank, axis=1)[:, -count, None]
        for first in range(0, shape.heads, shape.group):
            tokens, _ = np.nonzero(is_open[:, first : first + shape.group])
            pairs.append(tokens)
    return pairs


BLOCK_LATENCY = 1800.0
TILE_LATENCY = 600.0
EFFICIENCY = 0.88
SECTION_ROWS = 1 << 16


def makespan_us(card: Card, shape: Shape, way: Way, share: float) -> float:
    """Return the microseconds of all launches of a choice."""
    listed = 1.5 * math.ceil(shape.tokens * shape.group / 4096)
    kernel = Kernel.of(way.block, shape.head_dim)
    return _makespan_us(card, shape, way, share, kernel, listed, by_pairs=False)


def makespan_before_us(card: Card, shape: Shape, share: float) -> float:
    """Return the microseconds of what there was before: 16 rows a warp, 64 keys a tile, tiles in
    the order of pairs, lists of 1024 rows at a time, and sparse from 257 rows of a pair on."""
    size = Kernel.of("64by16", shape.head_dim).head_size
    kernel = Kernel(64, 16, size, 64, 16 if size <= 64 else 12)
    rows = shape.tokens * shape.group
    way = Way("sparse" if rows > 256 else "dense")
    return _makespan_us(
        card, shape, way, share, kernel, 1.5 * math.ceil(rows / 1024), by_pairs=True
    )


def _makespan_us(
    card: Card,
    shape: Shape,
    way: Way,
    share: float,
    kernel: Kernel,
    listed_us: float,
    *,
    by_pairs: bool,
) -> float:
    blocks = list(jobs_of(shape, way, kernel, share, by_pairs=by_pairs))
    rates = tile_clocks(kernel, card, shape)
    clocks = schedule(blocks, card.multiprocessors, kernel.resident(card), rates)
    microseconds = 2.0 + clocks / card.ghz / 1e3
    cache = card.multiprocessors * card.l2_bytes / 2 * card.ghz * 1e3  # bytes a microsecond
    numbers = shape.batch * shape.heads * shape.tokens * shape.head_dim
    if way.tactic == "sparse":
        microseconds += 1.5 + max(listed_us, (1 - share) * numbers * 2 / cache)
    if way.key_splits > 1:
        microseconds += 1.5 + 2 * way.key_splits * share * numbers * 4 / cache
    return microseconds


def jobs_of(
    shape: Shape, way: Way, kernel: Kernel, share: float, *, by_pairs: bool
) -> Iterator[Job]:
    """Yield the work of each block that has rows, in the order of the grid."""
    rows_of_pair = shape.tokens * shape.group
    row_tiles = math.ceil(rows_of_pair / kernel.rows)
    ends = [
        [
            tokens[min(first + kernel.rows, len(tokens)) - 1]
            for first in range(0, len(tokens), kernel.rows)
        ]
        for tokens in open_rows(shape, share if way.tactic == "sparse" else 1.0)
    ]
    turns: list[tuple[float, int, int]] = []
    most = max(SECTION_ROWS // rows_of_pair, 1)
    section_pairs = math.ceil(len(ends) / math.ceil(len(ends) / most))
    for pair, tiles in enumerate(ends):
        for number in range(len(tiles)):  # from the last tile on
            turn = pair if by_pairs else pair // section_pairs
            rank = number if by_pairs else number * row_tiles // len(tiles)
            turns.append((turn, rank, pair * 10**6 + len(tiles) - 1 - number))
    split_keys = max(64 * math.ceil(math.ceil(shape.tokens / way.key_splits) / 64), 64)
    for split in range(way.key_splits):
        for _, _, place in sorted(turns):
            pair, tile = divmod(place, 10**6)
            visible = ends[pair][tile] + 1 if shape.causal else shape.tokens
            keys = min(max(visible - split * split_keys, 0), split_keys)
            yield BLOCK_LATENCY, math.ceil(keys / kernel.tile_keys)


def tile_clocks(
    kernel: Kernel, card: Card, shape: Shape, latency: float = TILE_LATENCY
) -> tuple[float, float]:
    """Return the clocks of a tile of keys: alone, and what it takes from others."""
    scores = kernel.rows * kernel.tile_keys
    size = kernel.head_size
    products = 2 * scores * size / card.multiply_adds
    # Loads of matrices, 512 bytes each: b of keys and of values by each warp, a of queries.
    loads = kernel.warps * (2 * (size // 16) * (kernel.tile_keys // 16))
    loads += size // 16 * (kernel.rows // 16)
    written = 2 * kernel.tile_keys * size * 2
    memory = loads * 4 + written / 128
    copies = 2 * kernel.tile_keys * shape.head_dim * 2 / card.l2_bytes
    lanes = kernel.warps * 32
    others = 6.5 * scores / lanes + kernel.warp_rows * size / 32 + 4 * written / 16 / lanes + 120
    matrix = 2 * scores * size / 2048 / kernel.warps + memory / 4 / kernel.warps
    issue = kernel.warps * (others + matrix) / 4
    shared = max(products, memory, copies, issue, scores / 16) / EFFICIENCY
    return products * 4 / kernel.warps + latency + 0.67 * others, shared


class _Multiprocessor:
    """Some blocks at a time: each waits, then all that work share the rates."""

    def __init__(self, rates: tuple[float, float]) -> None:
        self._alone, self._shared = rates
        self._clock = 0.0
        self._waiting: list[tuple[float, float]] = []  # (clock when its keys are there, tiles)
        self._working: list[float] = []  # tiles left

    @property
    def blocks(self) -> int:
        return len(self._waiting) + len(self._working)

    def add(self, job: Job) -> None:
        self._waiting.append((self._clock + job[0], job[1]))

    def next_event(self) -> float:
        ready = min((clock for clock, _ in self._waiting), default=math.inf)
        done = self._clock + min(self._working, default=math.inf) * self._per_tile()
        return min(ready, done)

    def advance(self, clock: float) -> None:
        done = (clock - self._clock) / self._per_tile()
        self._working = [left - done for left in self._working if left - done > 1e-9]
        self._working += [tiles for ready, tiles in self._waiting if ready <= clock]
        self._waiting = [item for item in self._waiting if item[0] > clock]
        self._clock = clock

    def _per_tile(self) -> float:
        return max(self._alone, len(self._working) * self._shared)


def schedule(
    jobs: list[Job], multiprocessors: int, resident: int, rates: tuple[float, float]
) -> float:
    """Return the clock at which the last block ends."""
    machines = [_Multiprocessor(rates) for _ in range(multiprocessors)]
    queue = iter(jobs)
    for _ in range(resident):
        for machine, job in zip(machines, queue, strict=False):
            machine.add(job)
    events = [(machine.next_event(), n) for n, machine in enumerate(machines) if machine.blocks]
    heapq.heapify(events)
    clock = 0.0
    while events:
        clock, number = heapq.heappop(events)
        machine = machines[number]
        machine.advance(clock)
        while machine.blocks < resident and (job := next(queue, None)) is not None:
            machine.add(job)
        if machine.blocks:
            heapq.heappush(events, (machine.next_event(), number))
    return clock


def table() -> Iterator[str]:
    """Yield the table of benchmarks/RESULTS.md: microseconds before and now, at three shares."""
    from tests.cuda.libraries import PLAIN, Emulator, build

    library = Emulator(build(PLAIN)).library
    yield "| shape | " + " | ".join(card.name for card in CARDS) + " |"
    yield "|---|" + "---|" * len(CARDS)
    for shape in SHAPES:
        cells = [
            ", ".join(_cell(library, card, shape, share) for share in (1.0, 0.75, 0.5))
            for card in CARDS
        ]
        yield f"| {shape.name} | " + " | ".join(cells) + " |"


def _cell(library: ctypes.CDLL, card: Card, shape: Shape, share: float) -> str:
    way = chosen(library, card, shape, share)
    now = makespan_us(card, shape, way, share)
    kind = "s" if way.tactic == "sparse" else "d"
    return f"{makespan_before_us(card, shape, share):.0f} → {now:.0f} {kind}"


def chosen(library: ctypes.CDLL, card: Card, shape: Shape, share: float) -> Way:
    """Return the library's choice."""
    choice = abi.AttentionChoice()
    args, device = shape.args(), card.device()
    status = library.moh_cuda_attention_choose(
        ctypes.byref(args), ctypes.byref(device), share, ctypes.byref(choice)
    )
    assert status == 0, library.moh_cuda_last_error()
    return Way.of(choice)


if __name__ == "__main__":
    print("\n".join(table()))
