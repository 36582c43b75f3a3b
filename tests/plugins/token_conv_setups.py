"""Token convolutions as they may come: sizes and options, from which a case is made."""

from dataclasses import dataclass

import numpy as np

from moh_deploy.ops.cases import Case
from moh_deploy.ops.spec import Arrays


@dataclass(frozen=True)
class TokenConvSetup:
    """Sizes and options of a run; its text is the name of the case, and the seed of its numbers."""

    batch: int = 1
    height: int = 5
    width: int = 6
    channels: int = 20
    kernel_height: int = 3
    kernel_width: int = 3
    bias: bool = True
    input_bias: bool = False
    activation: str = "none"
    gated: bool = False
    dtype: str = "float32"
    size: float = 1.0  # of the features that are convolved

    @property
    def products(self) -> int:
        """What the reference has to multiply, one pixel and tap at a time."""
        return self.batch * self.height * self.width * self.kernel_height * self.kernel_width

    def case(self) -> Case:
        attributes = {
            "channels": self.channels,
            "height": self.height,
            "width": self.width,
            "activation": self.activation,
            "gated": int(self.gated),
        }
        return Case(
            repr(self),
            "MoHTokenConv",
            "drawn",
            attributes,
            self._inputs,
            self.dtype,
            score_bound=8.0 * max(1.0, self.size),
        )

    def _inputs(self, rng: np.random.Generator) -> Arrays:
        features = self.channels * (2 if self.gated else 1)
        tokens = rng.standard_normal((self.batch, self.height * self.width, features))
        kernel = (self.kernel_height, self.kernel_width)
        weight = rng.standard_normal((self.channels, 1, *kernel)) / np.sqrt(np.prod(kernel))
        bias = rng.standard_normal(self.channels) if self.bias else None
        tokens[..., : self.channels] *= self.size
        input_bias = rng.standard_normal(features) if self.input_bias else None
        return tokens, weight, bias, input_bias
