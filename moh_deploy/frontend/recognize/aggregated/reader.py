"""Read one layer as windowed-and-pooled attention."""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from moh_deploy.frontend.fx.axes import Dim, flat, fresh_dim, leaves, product, resolve
from moh_deploy.frontend.fx.builder import NotCoveredError
from moh_deploy.frontend.fx.graph import argument, rank, shape
from moh_deploy.frontend.fx.known_values import KnownValues
from moh_deploy.frontend.fx.slices import Piece
from moh_deploy.frontend.recognize.aggregated import weights
from moh_deploy.frontend.recognize.aggregated.form import Aggregated, Window, WindowSource
from moh_deploy.frontend.recognize.aggregated.peel import close, same_query
from moh_deploy.frontend.recognize.aggregated.scores import (
    JointScoreReader,
    JointScores,
    KeyReader,
    Keys,
)
from moh_deploy.frontend.recognize.aggregated.windows import CutWindows, WindowAxes, read_windows
from moh_deploy.frontend.recognize.cores.softmax import JOINT_SOFTMAX
from moh_deploy.frontend.recognize.layer import MoHLayer


def read_aggregated(layer: MoHLayer, known: KnownValues) -> Aggregated:
    """Read a layer whose softmax spans window scores and pooled scores.

    Raises:
        NotCoveredError: With the reason why MoHAggregatedAttention cannot express it.
    """
    # From the outside in: values and weights, the scores that the weights are a softmax of, the
    # keys that the scores are products with, and the image that keys and values are windows of.
    for group, what in ((layer.tokens, "image"), (layer.heads, "number of heads")):
        if not product(leaves(group)).is_Integer:
            raise NotCoveredError(f"the {what} has a dynamic size")
    values = _one_of_each(layer, weights.weighted_values(layer))
    reader = weights.WeightReader(layer, known)
    near, far = (reader.read(each.weights, each.columns) for each in values)
    scores = _scores(layer, near, far, known)
    keys, pooled, cut_keys = _keys(layer, scores, known)
    axes = WindowAxes(
        layer.batch, layer.heads, layer.tokens, values[0].columns, leaves(layer.core.value_axes)
    )
    cut_values = read_windows([(values[0].value, axes)], known, "values")
    parts = (near, far, scores, keys, pooled, cut_keys, cut_values)
    return _Assembly(layer, values, *parts).build()


def _keys(
    layer: MoHLayer, scores: JointScores, known: KnownValues
) -> tuple[Keys, Keys, CutWindows]:
    """The keys of windows, the pooled keys, and how the former were cut out."""
    # Whatever product is not with pooled keys is with keys of a window, or of a part of its taps.
    reader = KeyReader(layer, known)
    read = [reader.pooled(part) for part in scores.parts]
    pooled = [keys for keys in read if keys is not None]
    windowed = [part for part, keys in zip(scores.parts, read, strict=True) if keys is None]
    if not windowed or len(pooled) != 1:
        raise NotCoveredError(
            f"the softmax spans {len(windowed)} products with keys of a window and {len(pooled)}"
            " with keys for all pixels"
        )
    keys, cut = reader.windowed(windowed, pooled[0])
    return keys, pooled[0], cut


def _one_of_each(
    layer: MoHLayer, products: list[weights.WeightedValues]
) -> tuple[weights.WeightedValues, weights.WeightedValues]:
    """The products with the values of windows and with pooled values."""
    tokens = set(leaves(layer.tokens))
    near = [each for each in products if tokens & set(flat(each.value.layout))]
    far = [each for each in products if not tokens & set(flat(each.value.layout))]
    if not near:
        raise NotCoveredError(JOINT_SOFTMAX)
    if len(near) != 1 or len(far) != 1:
        raise NotCoveredError(
            f"the attention adds up {len(near)} products with values of a window and {len(far)}"
            " with values for all pixels, expected one of each"
        )
    return near[0], far[0]


def _scores(
    layer: MoHLayer, near: weights.Weights, far: weights.Weights, known: KnownValues
) -> JointScores:
    softmax = layer.core.anchor
    dim = cast(int, argument(softmax, "dim", -1)) % rank(softmax)
    extent = shape(softmax)[dim]
    # Every one of the J weights is used exactly once: the two parts make up the softmax.
    places = torch.cat([near.positions, far.positions]).sort().values
    if resolve(near.layout) != resolve(far.layout):
        raise NotCoveredError("window and pooled scores are of different heads or tokens")
    if not extent.is_Integer:
        raise NotCoveredError("the number of pooled keys is dynamic")
    if not torch.equal(places, torch.arange(int(extent))):
        raise NotCoveredError("some weights of the softmax are not used, or are used twice")
    columns = fresh_dim(extent)
    layout = (*near.layout[:dim], columns, *near.layout[dim:])
    return JointScoreReader(layer.heads, layer.tokens, known).read(softmax, layout, columns)


@dataclass(frozen=True)
class _Assembly:
    """Checks that the parts make one MoHAggregatedAttention, and brings its operands together."""

    layer: MoHLayer
    values: tuple[weights.WeightedValues, weights.WeightedValues]
    near: weights.Weights
    far: weights.Weights
    scores: JointScores
    keys: Keys
    pooled: Keys
    cut_keys: CutWindows
    cut_values: CutWindows

    def build(self) -> Aggregated:
        keys, pooled = self.keys, self.pooled
        if not torch.equal(self.far.positions, pooled.columns):
            raise NotCoveredError("pooled keys and pooled values are not in the same order")
        if self.far.tokens or bool(self.far.offset.any()):
            raise NotCoveredError("something is added to the weights of pooled values")
        # Both products read one query, with one scale.
        if not same_query(keys.query, pooled.query, (keys.source.head_dim, pooled.source.head_dim)):
            raise NotCoveredError("window scores and pooled scores are of different queries")
        if not (close(keys.scale, pooled.scale) and close(keys.query.shift, pooled.query.shift)):
            raise NotCoveredError("window scores and pooled scores are scaled differently")
        window, key_taps, value_taps = self._window()
        tokens, offset = self._added_weights(value_taps)
        if not self.cut_values.is_zero_outside(window, value_taps) and not (
            tokens is None and offset is None
        ):
            raise NotCoveredError("values outside the image are not 0")
        query, own_keys, pooled_keys, epsilon = self._units()
        head_dim, far = leaves(self.layer.core.value_axes), self.values[1]
        pooled_values = Piece(far.value.node, resolve(far.value.layout))
        bias = self.scores.bias.masked_fill(self.scores.hidden, float("-inf"))  # [H, N, J]
        heads, image = _count(self.layer.heads), _count(self.layer.tokens)
        form = Aggregated(
            query=query,
            key=own_keys,
            value=WindowSource(self.cut_values.image, self.layer.tokens, head_dim),
            pooled_key=pooled_keys,
            pooled_value=WindowSource(pooled_values, far.columns, head_dim),
            window=window,
            query_embedding=self._embedding(),
            query_scale=_unless(pooled.scale.expand(heads, image), 1.0),
            window_bias=_unless(self._window_bias(window, key_taps), 0.0),
            pooled_bias=_unless(bias[..., pooled.columns], 0.0),
            window_tokens=tokens,
            window_offset=offset,
            epsilon=epsilon,
        )
        sizes = {product(leaves(source.head_dim)) for source in form.sources}
        if len(sizes) != 1 or not next(iter(sizes)).is_Integer:
            raise NotCoveredError("queries, keys and values have heads of different sizes")
        return form

    def _window(self) -> tuple[Window, Tensor, Tensor]:
        """Sizes of image and window; the window's number of each key's and of each value's tap."""
        # A cut may be windows of several images (1 x 12, 3 x 4): keys and values must mean the
        # same.
        of_keys, of_values = self.cut_keys.orders(), self.cut_values.orders()
        for window, value_taps in of_values.items():
            if window in of_keys and self._paired(window, of_keys[window], value_taps):
                return window, of_keys[window], value_taps
        raise NotCoveredError(
            "keys and values are not those of a window around each pixel, of odd height and width,"
            " with the weights in the order of the keys"
        )

    def _paired(self, window: Window, key_taps: Tensor, value_taps: Tensor) -> bool:
        """True where each value is weighted by the score of the key at the same place."""
        # Softmax place -> tap of its key; -> tap of the value that it weighs. Taps that lie outside
        # for every pixel have no weight, so their order does not matter.
        place = dict(zip(self.keys.columns.tolist(), key_taps.tolist(), strict=True))
        weighted = [place.get(column, -1) for column in self.near.positions.tolist()]
        inside = (window.neighbours() >= 0).any(0)
        return all(
            given == own or not (bool(inside[own]) or bool(inside[given]))
            for given, own in zip(weighted, value_taps.tolist(), strict=True)
        )

    def _units(self) -> tuple[WindowSource, WindowSource, WindowSource, float | None]:
        """Query, keys and pooled keys: before they get unit length where all of them do."""
        # The op normalises all three or none: where a model normalises some, these enter
        # normalised.
        keys, pooled, query = self.keys, self.pooled, self.pooled.query
        epsilons = {query.epsilon, keys.epsilon, pooled.epsilon}
        together = len(epsilons) == 1 and None not in epsilons
        operand = query.source if together else query.unit
        piece = Piece(operand.node, operand.layout)
        read = WindowSource(piece, self.layer.tokens, pooled.source.head_dim)
        if together:
            return read, keys.source, pooled.source, query.epsilon
        if keys.unit is None or pooled.unit is None:
            raise NotCoveredError("keys get unit length after the windows are cut, queries do not")
        return read, keys.unit, pooled.unit, None

    def _embedding(self) -> Tensor | None:
        """Return the query's embedding, [H, D]."""
        shift = self.pooled.query.shift  # [H, N, D]
        if not close(shift, shift[:, :1]):
            raise NotCoveredError("what is added to the query differs from pixel to pixel")
        heads, head_dim = self.layer.heads, self.pooled.source.head_dim
        return _unless(shift[:, 0].expand(_count(heads), _count(head_dim)), 0.0)

    def _window_bias(self, window: Window, taps: Tensor) -> Tensor:
        """[H, L]. The mask has to hide what is outside the image, and nothing else."""
        inside = window.neighbours()[:, taps] >= 0  # [N, L], in the order of the keys
        hidden = self.scores.hidden[..., self.keys.columns]
        if not bool(hidden.any()) and not bool(inside.all()):
            raise NotCoveredError("keys outside the image take part in the softmax")
        if not torch.equal(hidden, (~inside).expand_as(hidden)):
            raise NotCoveredError("the mask of a window hides other keys than those outside")
        # One number for each head and tap: that of any pixel whose neighbour is inside, so the
        # mean.
        bias = self.scores.bias[..., self.keys.columns].masked_fill(~inside, 0.0)
        mean = bias.sum(1) / inside.sum(0).clamp(min=1)  # [H, L]
        if not close(bias, mean[:, None].masked_fill(~inside, 0.0)):
            raise NotCoveredError("the bias of a window differs from pixel to pixel")
        return torch.zeros_like(mean).index_copy(1, taps, mean)

    def _added_weights(self, taps: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """[H, D, L] and [H, L], in the window's own order of taps."""
        heads, head_dim = _count(self.layer.heads), _count(self.pooled.source.head_dim)
        tokens = torch.zeros(heads, head_dim, len(taps), dtype=torch.float64)
        offset = self.near.offset.expand(heads, len(taps))
        for added in self.near.tokens:
            query = added.query
            dims = (added.head_dim, self.pooled.source.head_dim)
            if not same_query(query, self.pooled.query, dims):
                raise NotCoveredError("scores and weights are of different queries")
            # scale * (q' + shift) @ tokens = q' @ (scale * tokens) + (scale * shift) @ tokens
            scale = query.scale[:, :1, :]  # [H, 1, 1]
            shift = query.shift[:, :1, :] * scale  # [H, 1, D]
            if not (close(query.scale, scale) and close(query.shift * query.scale, shift)):
                raise NotCoveredError("the query of the weights is scaled for each pixel")
            full = added.tokens.expand(heads, head_dim, len(taps))
            tokens = tokens + scale * full
            offset = offset + (shift.expand(heads, 1, head_dim) @ full)[:, 0]
        return (
            _unless(torch.zeros_like(tokens).index_copy(2, taps, tokens), 0.0),
            _unless(torch.zeros_like(offset).index_copy(1, taps, offset), 0.0),
        )


def _unless(value: Tensor, neutral: float) -> Tensor | None:
    return None if bool((value == neutral).all()) else value


def _count(axes: Dim) -> int:
    return int(product(leaves(axes)))
