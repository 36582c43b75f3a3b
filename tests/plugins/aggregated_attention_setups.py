"""Aggregated attention as it may come: sizes and options, from which a case is made."""

from dataclasses import dataclass

import numpy as np

from moh_deploy.ops.aggregated_attention_shapes import OPTIONAL
from moh_deploy.ops.cases import Case
from moh_deploy.ops.spec import Arrays
from tests.plugins.attention_setups import make_gates


@dataclass(frozen=True)
class AggregatedAttentionSetup:
    """Sizes and options of a run; its text is the name of the case, and the seed of its numbers.

    Attributes:
        optional: The optional inputs that are present.
        gates: A name in GATE_PATTERNS.
    """

    batch: int = 1
    num_heads: int = 2
    head_dim: int = 8
    height: int = 5
    width: int = 6
    kernel_height: int = 3
    kernel_width: int = 3
    pooled: int = 4
    normalize: bool = True
    optional: tuple[str, ...] = OPTIONAL
    gates: str = "share"
    dtype: str = "float32"

    @property
    def products(self) -> int:
        """What the reference has to multiply."""
        seen = self.kernel_height * self.kernel_width + self.pooled
        return self.batch * self.num_heads * self.height * self.width * seen * self.head_dim

    def case(self) -> Case:
        attributes = {
            "num_heads": self.num_heads,
            "height": self.height,
            "width": self.width,
            "kernel_height": self.kernel_height,
            "kernel_width": self.kernel_width,
            "normalize": int(self.normalize),
            "epsilon": 1e-12,
        }
        return Case(
            repr(self),
            "MoHAggregatedAttention",
            "drawn",
            attributes,
            self._inputs,
            self.dtype,
            score_bound=16.0,
        )

    def _inputs(self, rng: np.random.Generator) -> Arrays:
        tokens, heads, dim = self.height * self.width, self.num_heads, self.head_dim
        places = self.kernel_height * self.kernel_width
        image, pool = (self.batch, tokens, heads * dim), (self.batch, self.pooled, heads * dim)
        # Scores of order 1 from vectors of any length, too.
        length = 1.0 if self.normalize else dim**-0.25
        query, key = length * rng.standard_normal((2, *image))
        pooled_key = length * rng.standard_normal(pool)
        gates = make_gates(self.gates, rng, (self.batch, tokens, heads))
        optional = {
            "query_embedding": 0.3 * dim**-0.5 * rng.standard_normal((heads, dim)),
            "query_scale": rng.uniform(0.5, 4.0, (heads, tokens)),
            "window_bias": rng.standard_normal((heads, places)),
            "pooled_bias": rng.standard_normal((heads, tokens, self.pooled)),
            "window_tokens": 0.3 * dim**-0.5 * rng.standard_normal((heads, dim, places)),
            "window_offset": 0.2 * rng.standard_normal((heads, places)),
        }
        value, pooled_value = rng.standard_normal(image), rng.standard_normal(pool)
        present = (optional[name] if name in self.optional else None for name in OPTIONAL)
        return (query, key, value, pooled_key, pooled_value, gates, *present)
