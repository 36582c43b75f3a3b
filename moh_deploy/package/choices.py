"""Translate a layer's choice into the domains of its nodes.

A node of domain `moh` runs on a kernel where there is one, the same node of domain `moh.dense` as
its function body. A layer with ranges of sizes has nodes whose domain depends on the model's
inputs.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from moh_deploy.errors import ConfigError
from moh_deploy.ops.op_names import DENSE_DOMAIN, KERNEL_DOMAIN
from moh_deploy.package.interface import Choice, LayerInfo, SizeRange
from moh_deploy.system.suggest import did_you_mean

# Choices by size: parse and write ranges, and find the choice that some sizes mean.

_WHERE = re.compile(r"(?P<path>[^\[\]]+)\[(?P<size>[^\[\]<>=]+)<=(?P<at_most>\d{1,18})\]")


def bound_text(size_range: SizeRange) -> str:
    """Return a bound as text: `batch*seq<=64`."""
    return f"{size_range.size}<={size_range.at_most}"


def is_in(size_range: SizeRange, sizes: Mapping[str, int]) -> bool:
    """Tell whether sizes are in a range."""
    return measure(size_range.size, sizes) <= size_range.at_most


def measure(size: str, sizes: Mapping[str, int]) -> int:
    """Compute a product of dimensions, such as `batch*seq`, at some sizes."""
    # A single name is a product of one.
    return math.prod(sizes[name] for name in size.split("*"))


def choice_at(layer: LayerInfo, sizes: Mapping[str, int]) -> Choice | None:
    """Return the choice that a layer has at some sizes, as `LayerInfo.choice` has it."""
    return next((range_.choice for range_ in layer.ranges if is_in(range_, sizes)), layer.choice)


def at_sizes(layers: Sequence[LayerInfo], sizes: Mapping[str, int]) -> tuple[LayerInfo, ...]:
    """Return the layers with one choice each: the one that they have at these sizes.

    Args:
        layers: The layers.
        sizes: Size of each dynamic dimension.
    """
    return tuple(replace(layer, choice=choice_at(layer, sizes), ranges=()) for layer in layers)


def split_where(text: str, dims: Sequence[str]) -> tuple[str, tuple[str, int] | None]:
    """Split `blocks.0.attn[batch*seq<=64]` into path, and size and bound; None for all sizes.

    Args:
        text: The text.
        dims: Names of the package's dynamic dimensions.

    Raises:
        ConfigError: It is of another form, or no dimension is called so.
    """
    # Module paths have no brackets, so one begins a range.
    if "[" not in text:
        return text, None
    match = _WHERE.fullmatch(text.replace(" ", ""))
    if match is None:
        raise ConfigError(
            f"'{text}' is no layer with a range of sizes, expected LAYER[SIZE<=N], such as"
            " 'all[seq<=64]' or 'all[batch*seq<=64]'."
        )
    for name in match["size"].split("*"):
        if name not in dims:
            raise ConfigError(
                f"'{text}': the package has no dynamic dimension '{name}', only"
                f" {', '.join(dims) or 'none'}.",
                hint=did_you_mean(name, dims) or None,
            )
    return match["path"], (match["size"], int(match["at_most"]))


CHOICES: tuple[Choice, ...] = ("dense", "sparse", "projected")


def choices_for(layer: LayerInfo) -> tuple[Choice, ...]:
    """Return the choices that a layer has, the plainest first; none if it was not replaced."""
    if layer.node is None:
        return ()
    # `projected` needs projections that are nodes of their own.
    return CHOICES if projections(layer) else CHOICES[:2]


def current_choice(layer: LayerInfo, sizes: Mapping[str, int] | None = None) -> Choice | None:
    """Return the choice by which a layer runs; without a choice, kernels run all that they can.

    Args:
        layer: The layer.
        sizes: Size of each dynamic dimension; None for sizes in none of its ranges.
    """
    choice = layer.choice if sizes is None else choice_at(layer, sizes)
    # The last one is the one with most kernels.
    return choice or (choices_for(layer) or (None,))[-1]


def projections(layer: LayerInfo) -> tuple[str, ...]:
    """Return the names of the projection nodes that a layer has."""
    names = (layer.query_projection, layer.output_projection)
    return tuple(name for name in names if name is not None)


@dataclass(frozen=True)
class NodeRule:
    """The domain that a node belongs to, whichever body it needs there."""

    # What is compared, the largest value that is meant, and the domain up to that; the first that
    # holds decides.
    ranges: tuple[tuple[str, int, str], ...]
    otherwise: str  # the domain at all other sizes

    @property
    def domain(self) -> str | None:
        """The one domain; None where it depends on sizes."""
        return None if self.ranges else self.otherwise

    def __str__(self) -> str:
        """Return `moh.dense if seq<=64, else moh`, by which a model names its conditions."""
        texts = [f"{domain} if {size}<={at_most}" for size, at_most, domain in self.ranges]
        return ", else ".join([*texts, self.otherwise])


def node_rules(layers: Sequence[LayerInfo]) -> dict[str, NodeRule]:
    """Return where each attention and projection node belongs, by the choices."""
    rules: dict[str, NodeRule] = {}
    for layer in layers:
        # The projections run on kernels in one choice only, the attention in two.
        if layer.node is not None:
            rules[layer.node] = _rule(layer, kernel_choices=("sparse", "projected"))
        rules |= {name: _rule(layer, kernel_choices=("projected",)) for name in projections(layer)}
    return rules


def _rule(layer: LayerInfo, *, kernel_choices: Sequence[Choice]) -> NodeRule:
    def domain(choice: Choice | None) -> str:
        return KERNEL_DOMAIN if choice in kernel_choices else DENSE_DOMAIN

    otherwise = domain(current_choice(layer))
    ranges = [(range_.size, range_.at_most, domain(range_.choice)) for range_ in layer.ranges]
    # A last range that says what holds anyway would be an `If` for nothing.
    while ranges and ranges[-1][2] == otherwise:
        ranges.pop()
    return NodeRule(tuple(ranges), otherwise)


def with_choices(
    layers: Sequence[LayerInfo], choices: Mapping[str, str], *, dims: Sequence[str] = ()
) -> tuple[LayerInfo, ...]:
    """Return the layers with the choices given for some of them.

    Args:
        layers: The package's layers.
        choices: Path of a layer, or `all`, to its choice; a path wins over `all`, which means for
            each layer the nearest that it has. With a range, as in `all[seq<=64]`, at these sizes
            only; of ranges of other sizes the first decides. A layer has the given ones only:
            with its path, or, if that is not named at all, with `all`.
        dims: Names of the package's dynamic dimensions.

    Raises:
        ConfigError: No replaced layer has that path, or it has no such choice; or no layer at all
            has what `all` are to be; or a range is of another form or of unknown dimensions.
    """
    possible = {layer.path: choices_for(layer) for layer in layers if choices_for(layer)}
    # All are checked before any is applied: `all` must not hide a path that does not exist.
    asked = [_Asked(*split_where(text, dims), choice) for text, choice in choices.items()]
    for choice in asked:
        _check_asked(choice.path, choice.choice, possible)
    return tuple(_chosen(layer, asked) for layer in layers)


def without_ranges(layers: Sequence[LayerInfo]) -> tuple[LayerInfo, ...]:
    """Return the layers with the one choice that they have where no range says otherwise."""
    return tuple(replace(layer, ranges=()) for layer in layers)


def asked_choice(layer: LayerInfo, choices: Mapping[str, str]) -> str | None:
    """Return the choice that is asked of a layer without a range, whether it has that or not."""
    return choices.get(layer.path, choices.get("all"))


def choice_text(layer: LayerInfo) -> str | None:
    """Return `dense if seq<=64, else sparse`."""
    ranges = [f"{range_.choice} if {bound_text(range_)}" for range_ in layer.ranges]
    return ", else ".join([*ranges, str(current_choice(layer))]) if choices_for(layer) else None


@dataclass(frozen=True)
class _Asked:
    """A given choice; `where` is its condition on sizes, None for all sizes."""

    path: str
    where: tuple[str, int] | None
    choice: str


def _chosen(layer: LayerInfo, asked: Sequence[_Asked]) -> LayerInfo:
    allowed = choices_for(layer)
    named = [choice for choice in asked if choice.path == layer.path]
    for_all = [choice for choice in asked if choice.path == "all"]
    if not allowed or not (named or for_all):
        return layer

    def nearest(choice: str) -> Choice:
        # Of `all=projected`, a layer without projections has `sparse`.
        return next((name for name in allowed if name == choice), allowed[-1])

    # A layer's own choices come first, so that its path wins over `all`.
    whole = [nearest(asked.choice) for asked in (*named, *for_all) if asked.where is None]
    ranges = [
        SizeRange(*asked.where, nearest(asked.choice))
        # Ranges of the two are not mixed: with its path, a layer says all there is to say of it.
        for asked in named or for_all
        if asked.where is not None
    ]
    layer = replace(layer, choice=whole[0] if whole else current_choice(layer))
    # Behind a wide range of one size, a narrow one would never decide. Of different sizes the order
    # stays as given: the first that holds decides.
    sizes = [range_.size for range_ in ranges]
    ranges.sort(key=lambda range_: (sizes.index(range_.size), range_.at_most))
    return with_ranges(layer, ranges)


def with_ranges(layer: LayerInfo, ranges: Sequence[SizeRange]) -> LayerInfo:
    """Return a layer with these ranges, without the last ones that change nothing."""
    kept = list(ranges)
    while kept and kept[-1].choice == current_choice(layer):
        kept.pop()
    return replace(layer, ranges=tuple(kept))


def _check_asked(path: str, choice: str, possible: Mapping[str, Sequence[Choice]]) -> None:
    if path != "all" and path not in possible:
        raise ConfigError(
            f"no layer '{path}' has anything to choose; the package has:"
            f" {', '.join(possible) or 'none'}.",
            hint=did_you_mean(path, possible) or None,
        )
    # `all` may be what any layer can be; the others take the nearest that they have.
    allowed = max(possible.values(), key=len, default=()) if path == "all" else possible[path]
    if choice not in allowed:
        cannot = "no layer can" if path == "all" else f"layer '{path}' cannot"
        raise ConfigError(
            f"{cannot} be '{choice}', only {', '.join(allowed) or 'none'}.",
            hint=did_you_mean(choice, allowed) or None,
        )
