"""Below which share of open gates the kernel is expected to win against dense attention.

    python -m tests.cuda.break_even        prints the ranges of benchmarks/RESULTS.md

A rival runs at the rate below, a tenth slower since the batch is 1, and multiplies by the gates in
a kernel of its own. Ours is the simulation's (makespan.py): as it is, and at the pace of
FlashAttention-2, which has the same layout of warps and is slower than a simulation of it.
"""

import ctypes
from dataclasses import dataclass

from tests.cuda.makespan import CARDS, SHAPES, Card, Shape, chosen, makespan_us

SHARES = tuple(share / 20 for share in range(2, 21))


@dataclass(frozen=True)
class Rival:
    """Dense attention.

    Attributes:
        causal_128, full_64: TFLOP/s, causal with heads of 128, not causal with heads of 64. Of an
            H100 as charted in the paper of FlashAttention-3 (arXiv 2407.08608); others are assumed.
        terabytes: A second, of the card's memory, for the multiplication by the gates.
    """

    card: str
    name: str
    causal_128: float
    full_64: float
    terabytes: float

    def attention_us(self, shape: Shape) -> float:
        pairs = shape.tokens * (shape.tokens + 1) / 2 if shape.causal else shape.tokens**2
        work = 4 * shape.batch * shape.heads * pairs * shape.head_dim
        return work / (0.9 * (self.causal_128 if shape.causal else self.full_64)) / 1e6

    def gates_us(self, shape: Shape) -> float:
        numbers = shape.batch * shape.heads * shape.tokens * shape.head_dim
        return 2 + 2 * 2 * numbers / self.terabytes / 1e6


RIVALS = (
    Rival("H100", "FlashAttention-2", 298, 306, 3.35),
    Rival("H100", "cuDNN", 484, 373, 3.35),
    Rival("A100", "FlashAttention-2", 165, 165, 1.9),
    Rival("RTX 4090", "FlashAttention-2", 148, 148, 1.0),
)


def break_even(
    library: ctypes.CDLL, card: Card, shape: Shape, rival: Rival
) -> tuple[float | None, float | None]:
    """Return the largest share at which ours is not slower: at FlashAttention-2's pace, and as
    simulated; None: at none."""
    ours = {
        share: makespan_us(card, shape, chosen(library, card, shape, share), share)
        for share in SHARES
    }
    flash = next(item for item in RIVALS if item.card == card.name)
    pace = max(1.0, flash.attention_us(shape) / ours[1.0])
    limit = rival.attention_us(shape) + rival.gates_us(shape)

    def largest(slower: float) -> float | None:
        return max((share for share, us in ours.items() if slower * us <= limit), default=None)

    return largest(pace), largest(1.0)


def main() -> None:
    from tests.cuda.libraries import PLAIN, Emulator, build

    library = Emulator(build(PLAIN)).library
    for rival in RIVALS:
        card = next(card for card in CARDS if card.name == rival.card)
        for shape in SHAPES[3:]:
            at_pace, simulated = break_even(library, card, shape, rival)
            print(f"{rival.card}, {rival.name}, {shape.name}: {at_pace} to {simulated}")


if __name__ == "__main__":
    main()
