"""The choice of an attention's way, and the model behind it, against a simulated schedule."""

import ctypes
import math

import pytest

from tests.cuda.libraries import Emulator
from tests.cuda.makespan import (
    CARDS,
    SHAPES,
    SHARES,
    Card,
    Job,
    Kernel,
    Shape,
    Way,
    chosen,
    makespan_before_us,
    makespan_us,
    schedule,
)
from tests.cuda.schedules import changed_us, now_us, sm90_us
from tests.nightly import nightly_if, sampled

H100 = CARDS[0]
USUAL_SHARE = 0.75
BLOCKS = ("64by16", "64by32", "128by32")
RUNS = [
    pytest.param(
        card,
        shape,
        share,
        id=f"{card.name}-{shape.name}-{share}",
        marks=nightly_if(share != USUAL_SHARE),
    )
    for card in CARDS
    for shape in SHAPES
    for share in SHARES
]


def _shape(name: str) -> Shape:
    return next(shape for shape in SHAPES if shape.name == name)


def _ways(shape: Shape) -> list[Way]:
    splits = (1, 2) if shape.tokens >= 512 else (1,)
    return [
        Way(tactic, block, count)
        for tactic in ("dense", "sparse")
        for block in BLOCKS
        for count in splits
    ]


def _estimate_us(emulator: Emulator, card: Card, shape: Shape, way: Way, share: float) -> float:
    microseconds = ctypes.c_double()
    args, device, choice = shape.args(), card.device(), way.choice()
    status = emulator.library.moh_cuda_attention_estimate(
        ctypes.byref(args),
        ctypes.byref(device),
        share,
        ctypes.byref(choice),
        ctypes.byref(microseconds),
    )
    assert status == 0, emulator.library.moh_cuda_last_error()
    return microseconds.value


@sampled(4)
@pytest.mark.parametrize(("card", "shape", "share"), RUNS)
def test_the_choice_is_near_the_best_that_the_simulation_knows(
    emulator: Emulator, card: Card, shape: Shape, share: float
):
    """Closest at the share that is expected where nothing is known."""
    simulated = {way: makespan_us(card, shape, way, share) for way in _ways(shape)}
    choice = chosen(emulator.library, card, shape, share)
    ours = makespan_us(card, shape, choice, share)
    best = min(simulated, key=lambda way: simulated[way])
    allowed = 1.05 if share == USUAL_SHARE else 1.2
    assert ours <= allowed * simulated[best], f"{choice}: {ours:.1f} us; {best} has less"


@sampled(4)
@pytest.mark.parametrize(("card", "shape", "share"), RUNS)
def test_the_model_is_near_the_simulation(
    emulator: Emulator, card: Card, shape: Shape, share: float
):
    ratios = {
        way: _estimate_us(emulator, card, shape, way, share) / makespan_us(card, shape, way, share)
        for way in _ways(shape)
    }
    far = {str(way): round(ratio, 2) for way, ratio in ratios.items() if not 0.7 < ratio < 1.5}
    assert far == {}
    typical = math.exp(sum(map(math.log, ratios.values())) / len(ratios))
    assert 0.85 < typical < 1.15


@pytest.mark.parametrize("card", CARDS, ids=str)
@pytest.mark.parametrize("name", ["ViT", "DiT", "DiT-24"])
@pytest.mark.parametrize("share", SHARES)
def test_few_tokens_are_dense(emulator: Emulator, card: Card, name: str, share: float):
    assert chosen(emulator.library, card, _shape(name), share).tactic == "dense"


@pytest.mark.parametrize("card", CARDS, ids=str)
@pytest.mark.parametrize("share", [0.9, 0.75])
def test_512_tokens_are_not_sparse_where_that_loses(emulator: Emulator, card: Card, share: float):
    shape = _shape("LLaMA-512")
    choice = chosen(emulator.library, card, shape, share)
    dense = min(makespan_us(card, shape, Way("dense", block), share) for block in BLOCKS)
    assert choice.tactic == "dense" or makespan_us(card, shape, choice, share) <= dense


def test_long_prompts_are_faster_than_they_were(emulator: Emulator):
    shape = _shape("LLaMA-2k")
    choice = chosen(emulator.library, H100, shape, USUAL_SHARE)
    now, before = (
        makespan_us(H100, shape, choice, USUAL_SHARE),
        makespan_before_us(H100, shape, USUAL_SHARE),
    )
    assert now <= 100
    assert before > 120


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("head_dim", [24, 64, 72, 128])
@pytest.mark.parametrize("card", CARDS, ids=str)
def test_as_many_blocks_are_resident_as_the_library_says(
    emulator: Emulator, block: str, head_dim: int, card: Card
):
    args = Shape("", 1, 1, 1, 64, head_dim).args()
    device, choice = card.device(), Way("dense", block).choice()
    resident = emulator.library.moh_cuda_attention_resident_blocks(
        ctypes.byref(args), ctypes.byref(choice), ctypes.byref(device)
    )
    assert resident == Kernel.of(block, head_dim).resident(card)


@pytest.mark.parametrize(
    ("jobs", "multiprocessors", "resident", "clocks"),
    [
        ([(100, 5)], 4, 2, 100 + 5 * 10),  # its latency and its tiles
        ([(0, 5), (0, 3)], 1, 2, 3 * 14 + 2 * 10),  # 3 tiles each share the rate, 2 are alone
        ([(0, 4), (0, 2), (0, 3)], 2, 1, 2 * 10 + 3 * 10),  # the last waits until there is room
    ],
)
def test_schedule_ends_when_its_last_block_does(
    jobs: list[Job], multiprocessors: int, resident: int, clocks: float
):
    assert schedule(jobs, multiprocessors, resident, rates=(10, 7)) == pytest.approx(clocks)


@pytest.mark.parametrize("name", ["DiT", "LLaMA-512"])
def test_other_schedules_begin_at_the_kernel_as_it_is(name: str):
    shape = _shape(name)
    ways = [way for way in _ways(shape) if way.key_splits == 1]
    as_it_is = min(makespan_us(H100, shape, way, USUAL_SHARE) for way in ways)
    # The zeros of closed rows, which these leave out, are hidden behind the list here.
    assert changed_us(H100, shape) == pytest.approx(as_it_is, rel=1e-6)
    assert changed_us(H100, shape, tile=300) < as_it_is
    assert sm90_us(H100, shape) < now_us(H100, shape)
