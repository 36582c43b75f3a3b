"""In which order blocks take tiles of rows: plugins/cuda/kernels/attention/order.cuh."""

import ctypes
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cuda.libraries import Emulator

ROW_TILES = 24


def _order(
    emulator: Emulator, tiles: Sequence[int], section_pairs: int, row_tiles: int = ROW_TILES
) -> np.ndarray:
    """Return (pair, tile from the pair's last) of each block [blocks, 2]; tile -1: none."""
    numbers = np.array(tiles, np.int32)
    order = np.full((len(tiles) * row_tiles, 2), -7, np.int32)
    pointer = ctypes.POINTER(ctypes.c_int32)
    emulator.library.moh_cuda_attention_order(
        len(tiles),
        row_tiles,
        section_pairs,
        numbers.ctypes.data_as(pointer),
        order.ctypes.data_as(pointer),
    )
    return order


@given(
    tiles=st.lists(st.integers(0, ROW_TILES), min_size=1, max_size=9),
    section_pairs=st.integers(1, 9),
)
def test_every_tile_is_taken_once(emulator: Emulator, tiles: list[int], section_pairs: int):
    order = _order(emulator, tiles, section_pairs)
    taken = sorted((int(pair), int(tile)) for pair, tile in order if tile >= 0)
    assert taken == [(pair, tile) for pair, count in enumerate(tiles) for tile in range(count)]


@given(tiles=st.lists(st.integers(1, ROW_TILES), min_size=1, max_size=9))
def test_longest_tiles_come_first_over_all_pairs(emulator: Emulator, tiles: list[int]):
    """A tile's length is where it ends in its pair. A pair with few tiles has longer steps: no
    block is shorter than a later one by more than one of them."""
    order = _order(emulator, tiles, section_pairs=len(tiles))
    ends = [1 - tile / tiles[pair] for pair, tile in order if tile >= 0]
    later = np.maximum.accumulate(ends[::-1])[::-1]
    assert (later - ends <= 1 / ROW_TILES + 1e-9).all()


def test_sections_follow_each_other(emulator: Emulator):
    pairs = _order(emulator, [ROW_TILES] * 7, section_pairs=3)[:, 0]
    sections = pairs // 3
    assert (np.diff(sections) >= 0).all()
    assert list(pairs[:4]) == [0, 1, 2, 0]
    assert set(pairs[-ROW_TILES:]) == {6}


def test_many_tiles_stay_within_64_bits(emulator: Emulator):
    """Their product with a turn's number is beyond 32 bits."""
    tiles = 1 << 17
    order = _order(emulator, [tiles, 3], section_pairs=2, row_tiles=tiles)
    assert (order[::2, 1] == np.arange(tiles)).all()
    assert list(order[1::2, 1][order[1::2, 1] >= 0]) == [0, 1, 2]


@pytest.mark.parametrize("row_tiles", [1, 2])
def test_a_grid_of_few_blocks(emulator: Emulator, row_tiles: int):
    order = _order(emulator, [row_tiles, 0], section_pairs=2, row_tiles=row_tiles)
    assert (order[::2, 1] == np.arange(row_tiles)).all()
    assert (order[1::2, 1] == -1).all()
