"""Race check of shared memory.

Two accesses of different threads of a block, of which one at least writes, need a barrier of the
block between them, or one of the warp if both are in it. A copy by cp.async writes from its issue
until its thread has waited for it: nobody may touch its target in between.

Time is counted for each warp: a barrier of the warp adds 1, one of the block brings all its warps
to the same later time. For each granule of memory there is the last writer and when, the lowest and
the highest reader since readers were last ordered, and when.
"""

from dataclasses import dataclass

import numpy as np

from tests.cuda.ptx.errors import Race

WARP = 32
_NOBODY, _SEVERAL = -1, -2


@dataclass(frozen=True)
class Access:
    """Granules that lanes use, one an element.

    Attributes:
        at: Granule, counted through the memory of all blocks.
        block, warp: Of the lane; warps are counted through all blocks.
        thread: The lane within its block.
    """

    at: np.ndarray
    block: np.ndarray
    warp: np.ndarray
    thread: np.ndarray
    text: str


class RaceCheck:
    """What was done to the shared memory of each block.

    Args:
        lanes: Of a block.
        size: Bytes of shared memory of a block.
        granule: Bytes that are never used in part.
    """

    def __init__(self, blocks: int, lanes: int, size: int, granule: int) -> None:
        self.granule = granule
        self._lanes = lanes
        shape = (blocks, -(-max(size, 1) // 16) * 16 // granule)
        self._writer, self._written, self._lowest, self._highest, self._read = (
            np.full(shape, _NOBODY, np.int32) for _ in range(5)
        )
        self._copied = np.zeros(shape, np.bool_)
        self._updated = np.zeros(shape, np.bool_)  # by the writer, atomically
        self._ordered = np.zeros(blocks, np.int32)
        self._time = np.zeros((blocks, lanes // WARP), np.int32)

    def access(self, granules: np.ndarray, lane: np.ndarray, text: str) -> Access:
        """Describe an access.

        Args:
            granules: [accesses, granules of each].
            lane: [accesses], of all lanes, ascending.
        """
        lane = np.repeat(lane.astype(np.int32), granules.shape[1])
        thread = lane % self._lanes
        return Access(granules.reshape(-1), lane // self._lanes, lane // WARP, thread, text)

    def read(self, access: Access) -> None:
        """Note that lanes read."""
        self._check_copies(access, "is read")
        self._check_writer(access, "reads what was written by")
        at, thread, now = access.at, access.thread, self._now(access)
        lowest, highest, read = (_flat(a) for a in (self._lowest, self._highest, self._read))
        fresh = (read[at] < self._ordered[access.block]) | (highest[at] == _NOBODY)
        in_warp = (lowest[at] // WARP == thread // WARP) & (highest[at] // WARP == thread // WARP)
        fresh |= in_warp & (read[at] < now)
        # Of equal granules the last one counts: threads ascend for the highest.
        highest[at] = np.where(fresh, thread, np.maximum(highest[at], thread))
        lowest[at[::-1]] = np.where(fresh, thread, np.minimum(lowest[at], thread))[::-1]
        read[at] = now

    def write(self, access: Access) -> None:
        """Note that lanes write."""
        self._check_copies(access, "is written")
        self._note_write(access)

    def update(self, access: Access) -> None:
        """Note that lanes read and write atomically: among themselves that is no race."""
        self._check_copies(access, "is updated")
        self._check_writer(access, "updates what was written by", but_updates=True)
        self._check_readers(access)
        writer, written, updated = (_flat(a) for a in (self._writer, self._written, self._updated))
        now = self._now(access)
        again = updated[access.at] & (written[access.at] >= self._ordered[access.block])
        others = again & (writer[access.at] != access.thread)
        writer[access.at] = np.where(others, _SEVERAL, access.thread)
        writer[access.at[writer[access.at] != access.thread]] = _SEVERAL
        written[access.at] = now
        updated[access.at] = True

    def begin_copy(self, access: Access) -> None:
        """Note that copies are issued."""
        self._check_copies(access, "is copied to again")
        self._note_write(access)
        _flat(self._copied)[access.at] = True

    def end_copy(self, access: Access) -> None:
        """Note that copies were waited for: their lanes write now."""
        _flat(self._copied)[access.at] = False
        _flat(self._written)[access.at] = self._now(access)

    def synchronize_blocks(self, blocks: np.ndarray) -> None:
        """Order everything before and after, in the blocks of a mask."""
        time = self._time[blocks].max(1, initial=0) + 1
        self._ordered[blocks] = time
        self._time[blocks] = time[:, None]

    def synchronize_warps(self, warps: np.ndarray) -> None:
        """Order what each warp of a mask did before and does after."""
        self._time += warps.reshape(self._time.shape)

    def keep(self, blocks: np.ndarray) -> None:
        """Forget the other blocks than those of a mask."""
        for name, value in vars(self).items():
            if isinstance(value, np.ndarray):
                setattr(self, name, value[blocks])

    def _note_write(self, access: Access) -> None:
        self._check_writer(access, "writes what was written by")
        self._check_readers(access)
        writer = _flat(self._writer)
        writer[access.at] = access.thread
        _flat(self._updated)[access.at] = False
        _flat(self._written)[access.at] = self._now(access)
        last = writer[access.at]
        self._report(access, last, last != access.thread, "writes at the same time as")

    def _check_copies(self, access: Access, what: str) -> None:
        if _flat(self._copied)[access.at].any():
            raise Race(f"The target of a copy {what} before it was waited for: {access.text}")

    def _check_writer(self, access: Access, what: str, *, but_updates: bool = False) -> None:
        writer = _flat(self._writer)[access.at]
        wrong = self._races(access, writer, self._written)
        if but_updates:
            wrong &= ~_flat(self._updated)[access.at]
        self._report(access, writer, wrong, what)

    def _check_readers(self, access: Access) -> None:
        for readers in (self._lowest, self._highest):
            reader = _flat(readers)[access.at]
            wrong = self._races(access, reader, self._read)
            self._report(access, reader, wrong, "writes what was read by")

    def _races(self, access: Access, other: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Return where no barrier lies between what another thread did, and now."""
        time = _flat(times)[access.at]
        in_warp = other // WARP == access.thread // WARP
        ordered = (time < self._ordered[access.block]) | (in_warp & (time < self._now(access)))
        races: np.ndarray = (other != _NOBODY) & (other != access.thread) & ~ordered
        return races

    def _now(self, access: Access) -> np.ndarray:
        now: np.ndarray = _flat(self._time)[access.warp]
        return now

    def _report(self, access: Access, other: np.ndarray, wrong: np.ndarray, what: str) -> None:
        if not wrong.any():
            return
        first = int(np.argmax(wrong))
        byte = int(access.at[first]) % self._writer.shape[1] * self.granule
        who = "several threads" if other[first] == _SEVERAL else f"thread {other[first]}"
        raise Race(
            f"Thread {access.thread[first]} {what} {who}, and no barrier is "
            f"between them: byte {byte} of shared memory: {access.text}"
        )


def _flat(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1)
