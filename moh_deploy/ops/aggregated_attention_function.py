"""MoHAggregatedAttention as an ONNX function in standard ops: what runs wherever no kernel is
installed.

The window is never unfolded. Each of its L places is the padded image, moved: a Slice. Scores and
sums over the window take one place at a time, so nothing is larger than the keys.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import onnx

from moh_deploy.ops.aggregated_attention_shapes import OPTIONAL, REQUIRED
from moh_deploy.ops.spec import Attributes, BodyVariant, TensorTypes, parsed_function


@dataclass(frozen=True)
class AggregatedAttentionVariant(BodyVariant):
    """Selects one body of MoHAggregatedAttention."""

    kernel: tuple[int, int]  # rows and columns of the window
    normalize: bool  # queries and keys are brought to length 1
    optional: tuple[str, ...]  # names of the optional inputs that are present, in the op's order

    def parameters(self) -> tuple[str, ...]:
        """Return the names of all inputs up to the last present one."""
        # A node lists its inputs up to the last one, those left out in between included.
        last = max((OPTIONAL.index(name) for name in self.optional), default=-1)
        return (*REQUIRED, *OPTIONAL[: last + 1])

    def indices(self) -> range:
        """Return the number of each place of the window."""
        return range(self.kernel[0] * self.kernel[1])


def variant_of(inputs: TensorTypes, attributes: Attributes) -> AggregatedAttentionVariant:
    """Return the variant that a node needs; the node must satisfy the shape rule."""
    optional = zip(OPTIONAL, inputs[len(REQUIRED) :], strict=False)
    return AggregatedAttentionVariant(
        kernel=(int(attributes["kernel_height"]), int(attributes["kernel_width"])),
        normalize=bool(attributes["normalize"]),
        optional=tuple(name for name, type_ in optional if type_ is not None),
    )


def function_body(variant: AggregatedAttentionVariant, *, opset: int) -> onnx.FunctionProto:
    """Build the body of MoHAggregatedAttention for one variant."""
    steps = [
        _CONSTANTS,
        _operands(variant),
        _score_query(variant),
        _inside(variant),
        _window_scores(variant),
        _weights(variant),
        _window_weights(variant),
        _attended(variant),
        _GATED,
    ]
    sizes = "num_heads, height, width, kernel_height, kernel_width"
    inputs = ", ".join(variant.parameters())
    signature = f"MoHAggregatedAttention <{sizes}, normalize, epsilon> ({inputs}) => (Y)"
    return parsed_function(signature, steps, opset=opset)


# A Reshape copies a size with 0 and infers one with -1, so batch and head size may be dynamic.
_CONSTANTS = """
    zero = Constant <value_float = 0.0> ()
    minus_infinity = Constant <value_float = -inf> ()
    one_element = Constant <value_ints = [1]> ()
    last_axis = Constant <value_ints = [-1]> ()
    keep_one = Constant <value_ints = [0]> ()
    keep_two = Constant <value_ints = [0, 0]> ()
    rest = Constant <value_ints = [-1]> ()
    image_axes = Constant <value_ints = [1, 2]> ()
    num_heads_scalar = Constant <value_int: int = @num_heads> ()
    num_heads = Reshape (num_heads_scalar, one_element)
    height_scalar = Constant <value_int: int = @height> ()
    height = Reshape (height_scalar, one_element)
    width_scalar = Constant <value_int: int = @width> ()
    width = Reshape (width_scalar, one_element)
    num_tokens = Mul (height, width)
    image_size = Concat <axis = 0> (height, width)
    image_shape = Concat <axis = 0> (keep_one, image_size, rest)
    tokens_shape = Concat <axis = 0> (keep_one, num_tokens, num_heads, rest)
    split_shape = Concat <axis = 0> (keep_two, num_heads, rest)
    merge_shape = Concat <axis = 0> (keep_two, rest)
"""


def _operands(variant: AggregatedAttentionVariant) -> str:
    """Operands in float32, with a head axis where it counts: [B, N, H, D] or [B, P, H, D]."""
    # Values are not here: only what scores are made of is normalised.
    vectors = {"Q": "query", "K": "key", "pooled_K": "pooled_key"}
    epsilon = "epsilon = Constant <value_float: float = @epsilon> ()" if variant.normalize else ""
    return f"""
        {epsilon}
        {_each(_vectors(given, name, variant.normalize) for given, name in vectors.items())}
        value_float = Cast <to = 1> (V)
        value_image = Reshape (value_float, image_shape)
        pooled_value_float = Cast <to = 1> (pooled_V)
        pooled_value = Reshape (pooled_value_float, split_shape)
    """


def _vectors(given: str, name: str, normalize: bool) -> str:
    raw = f"""
        {name}_float = Cast <to = 1> ({given})
        {name}_raw = Reshape ({name}_float, split_shape)
    """
    # The largest of length and epsilon, as torch.nn.functional.normalize divides.
    if not normalize:
        return f"{raw} {name} = Identity ({name}_raw)"
    return f"""
        {raw}
        {name}_length = ReduceL2 <keepdims = 1> ({name}_raw, last_axis)
        {name}_divisor = Max ({name}_length, epsilon)
        {name} = Div ({name}_raw, {name}_divisor)
    """


def _score_query(variant: AggregatedAttentionVariant) -> str:
    """score_query [B, N, H, D] = (query + embedding) * scale."""
    # An absent input costs an Identity, which runtimes drop.
    embedded, scaled = (
        "embedded_query = Identity (query)",
        "score_query = Identity (embedded_query)",
    )
    if "query_embedding" in variant.optional:
        embedded = """
            embedding = Cast <to = 1> (query_embedding)
            embedded_query = Add (query, embedding)
        """
    if "query_scale" in variant.optional:
        scaled = """
            scale_HN = Cast <to = 1> (query_scale)
            scale_NH = Transpose <perm = [1, 0]> (scale_HN)
            scale = Unsqueeze (scale_NH, last_axis)
            score_query = Mul (embedded_query, scale)
        """
    return f"{embedded} {scaled}"


def _moved(name: str, variant: AggregatedAttentionVariant) -> str:
    """{name}_0, {name}_1, ...: what of {name}_image [B, height, width, C] each place sees.

    Outside of the image it is 0.
    """
    # Half a window on each side, so that every place of every token lies in the padded image.
    rows, columns = (size // 2 for size in variant.kernel)
    # ONNX Runtime up to 1.24 does not see that `value_ints` are of one dimension.
    pads = f"int64[8] {{0, {rows}, {columns}, 0, 0, {rows}, {columns}, 0}}"
    return f"""
        {name}_pads = Constant <value = {pads}> ()
        {name}_padded = Pad <mode = "constant"> ({name}_image, {name}_pads, zero)
        {
        _each(
            f"{name}_{place} = Slice ({name}_padded, start_{place}, end_{place}, image_axes)"
            for place in variant.indices()
        )
    }
    """


def _inside(variant: AggregatedAttentionVariant) -> str:
    """inside [1, N, 1, L]: the place is in the image.

    It depends on attributes only: a runtime that folds constants computes it once.
    """
    # Corners, in the padded image, of the part that each place of the window sees; the slices are
    # all as large as the image. As `window_bias`, [H, L], counts its L places: row by row.
    width = variant.kernel[1]
    corners = _each(
        f"""
        start_{place} = Constant <value_ints = [{place // width}, {place % width}]> ()
        end_{place} = Add (start_{place}, image_size)
        """
        for place in variant.indices()
    )
    return f"""
        {corners}
        inside_shape = Concat <axis = 0> (one_element, image_size, one_element)
        inside_image = ConstantOfShape <value = float[1] {{1.0}}> (inside_shape)
        {_moved("inside", variant)}
        inside_places = Concat <axis = -1> ({_all("inside", variant)})
        inside_tokens_shape = Concat <axis = 0> (one_element, num_tokens, one_element, rest)
        inside_tokens = Reshape (inside_places, inside_tokens_shape)
        inside = Greater (inside_tokens, zero)
    """


def _window_scores(variant: AggregatedAttentionVariant) -> str:
    """window_scores [B, N, H, L]; -inf outside of the image."""
    # score [B, N, H, 1] at one place: the query times the key that stands there, summed over D.
    place_scores = _each(
        f"""
        product_{place} = Mul (query_image, key_{place})
        vectors_{place} = Reshape (product_{place}, tokens_shape)
        score_{place} = ReduceSum <keepdims = 1> (vectors_{place}, last_axis)
        """
        for place in variant.indices()
    )
    # Without a bias 0 takes its place, so that places outside of the image get -inf all the same.
    biased = "window_bias" in variant.optional
    return f"""
        query_image = Reshape (score_query, image_shape)
        key_image = Reshape (key, image_shape)
        {_moved("key", variant)}
        {place_scores}
        place_scores = Concat <axis = -1> ({_all("score", variant)})
        {"bias_HL = Cast <to = 1> (window_bias)" if biased else "bias_HL = Identity (zero)"}
        place_bias = Where (inside, bias_HL, minus_infinity)
        window_scores = Add (place_scores, place_bias)
    """


def _weights(variant: AggregatedAttentionVariant) -> str:
    """softmax_window [B, H, N, L] and pooled_weights [B, H, N, P]: one softmax over both."""
    biased = "pooled_scores = Identity (pooled_products)"
    if "pooled_bias" in variant.optional:
        biased = """
            bias_HNP = Cast <to = 1> (pooled_bias)
            pooled_scores = Add (pooled_products, bias_HNP)
        """
    # [B, H, N, L] and [B, H, N, P] side by side: the softmax is over both at once.
    return f"""
        window_scores_BHNL = Transpose <perm = [0, 2, 1, 3]> (window_scores)
        score_query_BHND = Transpose <perm = [0, 2, 1, 3]> (score_query)
        pooled_key_BHDP = Transpose <perm = [0, 2, 3, 1]> (pooled_key)
        pooled_products = MatMul (score_query_BHND, pooled_key_BHDP)
        {biased}
        scores = Concat <axis = -1> (window_scores_BHNL, pooled_scores)
        weights = Softmax <axis = -1> (scores)
        num_places = Constant <value_ints = [{len(variant.indices())}]> ()
        no_place = Constant <value_ints = [0]> ()
        all_weights = Constant <value_ints = [9223372036854775807]> ()
        softmax_window = Slice (weights, no_place, num_places, last_axis)
        pooled_weights = Slice (weights, num_places, all_weights, last_axis)
    """


def _window_weights(variant: AggregatedAttentionVariant) -> str:
    """window_weights [B, N, H, L] = softmax_window + query @ window_tokens + window_offset."""
    # Behind the softmax: these weights need not add up to 1.
    steered = "steered_window = Identity (softmax_window)"
    shifted = "shifted_window = Identity (steered_window)"
    if "window_tokens" in variant.optional:
        steered = """
            query_BHND = Transpose <perm = [0, 2, 1, 3]> (query)
            tokens_HDL = Cast <to = 1> (window_tokens)
            token_weights = MatMul (query_BHND, tokens_HDL)
            steered_window = Add (softmax_window, token_weights)
        """
    if "window_offset" in variant.optional:
        shifted = """
            offset_HL = Cast <to = 1> (window_offset)
            second_axis = Constant <value_ints = [1]> ()
            offset_H1L = Unsqueeze (offset_HL, second_axis)
            shifted_window = Add (steered_window, offset_H1L)
        """
    return f"""
        {steered}
        {shifted}
        window_weights = Transpose <perm = [0, 2, 1, 3]> (shifted_window)
    """


def _attended(variant: AggregatedAttentionVariant) -> str:
    """heads [B, N, H, D]: weighed values of the window and of the pooled image."""
    # value [B, N, H, D] of one place times its weight [B, N, H, 1].
    weighed = _each(
        f"""
        beside_{place} = Reshape (value_{place}, tokens_shape)
        weighed_{place} = Mul (beside_{place}, weight_{place})
        """
        for place in variant.indices()
    )
    # As many sums as places, and no [B, N, H, L, D] in memory.
    count = len(variant.indices())
    return f"""
        {_all("weight", variant)} = Split <axis = -1, num_outputs = {count}> (window_weights)
        {_moved("value", variant)}
        {weighed}
        pooled_value_BHPD = Transpose <perm = [0, 2, 1, 3]> (pooled_value)
        pooled_heads_BHND = MatMul (pooled_weights, pooled_value_BHPD)
        pooled_heads = Transpose <perm = [0, 2, 1, 3]> (pooled_heads_BHND)
        heads = Sum ({_all("weighed", variant)}, pooled_heads)
    """


# Where, not Mul alone: a closed gate also silences NaN and Inf.
_GATED = """
    gates_column = Unsqueeze (gates, last_axis)
    gate = Cast <to = 1> (gates_column)
    closed = Equal (gate, zero)
    product = Mul (heads, gate)
    gated = Where (closed, zero, product)
    merged = Reshape (gated, merge_shape)
    Y = CastLike (merged, Q)
"""


def _each(steps: Iterable[str]) -> str:
    return " ".join(steps)


def _all(name: str, variant: AggregatedAttentionVariant) -> str:
    """{name}_0, {name}_1, ..., one for each place of the window."""
    return ", ".join(f"{name}_{place}" for place in variant.indices())
