"""The cases of MoHTokenConv."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from moh_deploy.ops.cases import Case
from moh_deploy.ops.spec import Arrays, AttributeValue
from tests.ops.cases.in_every_dtype import in_every_dtype

Tokens = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(shape)


@dataclass(frozen=True)
class _Setup:
    """Sizes and options of a case."""

    height: int = 5
    width: int = 7
    channels: int = 19
    kernel: tuple[int, int] = (3, 3)
    bias: bool = True
    input_bias: bool = False
    activation: str = "none"
    gated: bool = False
    batch: int = 2
    tokens: Tokens = _normal
    score_bound: float = 8.0

    def case(self, name: str, why: str) -> Case:
        attributes: dict[str, AttributeValue] = {
            "channels": self.channels,
            "height": self.height,
            "width": self.width,
            "activation": self.activation,
            "gated": int(self.gated),
        }
        return Case(name, "MoHTokenConv", why, attributes, self.build, score_bound=self.score_bound)

    def build(self, rng: np.random.Generator) -> Arrays:
        features = self.channels * (2 if self.gated else 1)
        tokens = self.tokens(rng, (self.batch, self.height * self.width, features))
        taps = self.kernel[0] * self.kernel[1]
        weight = rng.standard_normal((self.channels, 1, *self.kernel)) / np.sqrt(taps)
        bias = rng.standard_normal(self.channels) if self.bias else None
        if not self.input_bias:
            return tokens, weight, bias
        return tokens, weight, bias, rng.standard_normal(features)


def _wide(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return 30.0 * rng.standard_normal(shape)


def _one_pixel(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Everything is 0 but one token, so that the output shows where its neighbours are."""
    tokens = np.zeros(shape)
    tokens[:, shape[1] // 2] = 1.0 + rng.random(shape[2])
    return tokens


def _with_nan(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    tokens = rng.standard_normal(shape)
    tokens[0, shape[1] // 2, ::3] = np.nan
    return tokens


def _closed_gates(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    tokens = rng.standard_normal(shape)
    tokens[..., shape[2] // 2 :: 2] = 0.0
    return tokens


_TABLE: Mapping[str, tuple[str, _Setup]] = {
    "conv_plain": ("Neighbours, zero outside of the image.", _Setup()),
    "conv_no_bias": ("A convolution without a bias.", _Setup(bias=False)),
    "conv_gelu": ("gelu follows the bias.", _Setup(activation="gelu")),
    "conv_gelu_no_bias": ("The same without a bias.", _Setup(activation="gelu", bias=False)),
    "conv_gated": ("The second half of the channels is the factor.", _Setup(gated=True)),
    "conv_gated_no_bias": (
        "The same without a bias: closed gates give 0.",
        _Setup(gated=True, bias=False, tokens=_closed_gates),
    ),
    "conv_gelu_gated": (
        "The convolutional GLU of TransNeXt.",
        _Setup(activation="gelu", gated=True),
    ),
    "conv_gelu_gated_no_bias": (
        "The same without a bias.",
        _Setup(activation="gelu", gated=True, bias=False),
    ),
    "conv_input_bias": (
        "The bias of the input is not added outside of the image.",
        _Setup(input_bias=True),
    ),
    "conv_input_bias_gated": (
        "The gates have it, too.",
        _Setup(input_bias=True, gated=True, activation="gelu", height=9),
    ),
    "conv_input_bias_alone": (
        "Without a bias of the convolution.",
        _Setup(input_bias=True, bias=False, height=2, gated=True),
    ),
    "conv_input_bias_gelu": (
        "With gelu and without gates.",
        _Setup(input_bias=True, activation="gelu", channels=35),
    ),
    "conv_input_bias_large_kernel": (
        "Every pixel has other taps in the image.",
        _Setup(input_bias=True, kernel=(5, 7), height=4, width=5),
    ),
    "conv_input_bias_alone_gelu": (
        "All biases but that of the convolution, a tall kernel.",
        _Setup(input_bias=True, bias=False, activation="gelu", kernel=(5, 3), height=11),
    ),
    "conv_input_bias_alone_plain": (
        "Nothing else.",
        _Setup(input_bias=True, bias=False, kernel=(3, 1)),
    ),
    "conv_input_bias_all": (
        "Gates without gelu.",
        _Setup(input_bias=True, gated=True, height=1),
    ),
    "conv_input_bias_alone_all": (
        "Gates and gelu, without a bias of the convolution.",
        _Setup(input_bias=True, bias=False, gated=True, activation="gelu"),
    ),
    "conv_tall": (
        "Height and width are not swapped.",
        _Setup(height=11, width=3, activation="gelu"),
    ),
    "conv_one_pixel_lit": (
        "Where a token goes: the kernel is not flipped, rows do not wrap.",
        _Setup(bias=False, tokens=_one_pixel),
    ),
    "conv_oblong_kernel": (
        "Kernel height and width are not swapped.",
        _Setup(kernel=(1, 5), height=4, width=9),
    ),
    "conv_oblong_kernel_tall": ("The same the other way round.", _Setup(kernel=(5, 3))),
    "conv_large_kernel": (
        "A kernel that is larger than the image.",
        _Setup(kernel=(7, 7), height=3, width=2, gated=True),
    ),
    "conv_pointwise": ("A kernel of one element.", _Setup(kernel=(1, 1))),
    "conv_one_row": ("One row of pixels.", _Setup(height=1, width=13)),
    "conv_one_column": ("One column of pixels.", _Setup(height=13, width=1)),
    "conv_one_token": ("One token.", _Setup(height=1, width=1, batch=1, activation="gelu")),
    "conv_one_channel": ("One channel.", _Setup(channels=1, activation="gelu", gated=True)),
    "conv_many_channels": (
        "Whole vectors and a rest.",
        _Setup(channels=67, height=4, width=12, activation="gelu", gated=True),
    ),
    "conv_whole_vectors": ("Whole vectors only.", _Setup(channels=32, width=8)),
    "conv_wide_values": (
        "gelu far from 0: nothing on one side, everything on the other.",
        _Setup(activation="gelu", tokens=_wide, channels=8, score_bound=240.0),
    ),
    "conv_nan": (
        "NaN reaches its neighbours, in its channel, and nobody else.",
        _Setup(activation="gelu", tokens=_with_nan),
    ),
    "empty_batch": ("No image at all.", _Setup(batch=0, activation="gelu", gated=True)),
    "empty_batch_plain": ("The same, the convolution alone.", _Setup(batch=0, bias=False)),
}

CASES = in_every_dtype(tuple(setup.case(name, why) for name, (why, setup) in _TABLE.items()))
