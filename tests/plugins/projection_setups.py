"""Projections as they may come: sizes and gates, from which a case is made."""

from dataclasses import dataclass

import numpy as np

from moh_deploy.ops.cases import Case
from moh_deploy.ops.spec import Arrays

GATE_PATTERNS = ("share", "few", "most", "all", "none", "shared_heads", "one_row", "no_head_0")
_OPEN_SHARES = {"few": 0.1, "most": 0.97, "all": 1.1, "no_head_0": 1.1, "none": -1.0}


@dataclass(frozen=True)
class ProjectionSetup:
    """Sizes and options of a run; its text is the name of the case, and the seed of its numbers.

    Attributes:
        op: MoHQueryProjection or MoHOutputProjection.
        width: The axis of W without heads.
        gates: One of GATE_PATTERNS.
    """

    op: str = "MoHQueryProjection"
    batch: int = 1
    seq_len: int = 20
    num_heads: int = 4
    head_dim: int = 8
    width: int = 30
    biased: bool = True
    gates: str = "share"
    dtype: str = "float32"

    @property
    def products(self) -> int:
        """What the reference has to multiply."""
        return self.batch * self.seq_len * self.num_heads * self.head_dim * self.width

    def case(self) -> Case:
        attributes = {"num_heads": self.num_heads}
        return Case(repr(self), self.op, "drawn", attributes, self._inputs, dtype=self.dtype)

    def _inputs(self, rng: np.random.Generator) -> Arrays:
        rows, columns = self.width, self.num_heads * self.head_dim
        is_output = self.op == "MoHOutputProjection"
        if is_output:
            rows, columns = columns, rows
        x = rng.standard_normal((self.batch, self.seq_len, rows))
        weight = rng.standard_normal((rows, columns)) * rows**-0.5
        gates = self._gates(rng)
        if is_output:
            x *= np.repeat(gates != 0, self.head_dim, axis=-1)
        return (x, weight, gates, rng.standard_normal(columns) if self.biased else None)

    def _gates(self, rng: np.random.Generator) -> np.ndarray:
        shape = (self.batch, self.seq_len, self.num_heads)
        gates = rng.uniform(0.25, 2.0, shape) * rng.choice([-1.0, 1.0], shape)
        gates[rng.random(shape) >= _OPEN_SHARES.get(self.gates, 0.6)] = 0.0
        if self.gates == "one_row":
            row = tuple(rng.integers(0, shape))
            gates[:], gates[row] = 0.0, 1.5
        elif self.gates == "no_head_0":
            gates[..., 0] = 0.0
        elif self.gates == "shared_heads":
            gates[..., : self.num_heads // 2] = 1.0
        return gates
