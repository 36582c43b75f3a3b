"""Read the sizes that an engine is built for, such as `batch=1..8..32,seq=128`."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moh_deploy.config.dims import DimExpr
from moh_deploy.errors import ConfigError
from moh_deploy.package import Manifest, TensorInfo
from moh_deploy.package.cache_buffers import BUFFER
from moh_deploy.runtime.tensorrt.messages import ShapeRange
from moh_deploy.system.suggest import did_you_mean

LARGEST = 1 << 30
"""What kernels count up to."""

# Numbers of 18 digits always fit into 64 bits.
_DIM = re.compile(r"(?P<name>[A-Za-z_]\w*)[=:](?P<spans>\d{1,18}(?:\.\.\d{1,18}){0,2})", re.ASCII)
# A wide range costs memory and speed at the sizes in it: TensorRT picks tactics that take all.
_MOST_TIMES_EXAMPLE = 4


@dataclass(frozen=True)
class Span:
    """The sizes of one dimension: the least, those that the engine is tuned for, the most."""

    min: int
    opt: int
    max: int

    def __str__(self) -> str:
        return str(self.opt) if self.min == self.max else f"{self.min}..{self.opt}..{self.max}"


Profile = Mapping[str, Span]
"""Name of each dynamic dimension to its sizes."""


def covers(profile: Profile, sizes: Mapping[str, int]) -> bool:
    """Tell whether a profile has these sizes."""
    return all(span.min <= sizes[name] <= span.max for name, span in profile.items())


def make_profiles(texts: Sequence[str], manifest: Manifest) -> tuple[Profile, ...]:
    """Read the profiles that a user wrote, or return the usual one.

    Args:
        texts: One a profile: `batch=1..8..32,seq=128`; `1..32` is tuned for 32; `batch:8` is meant
            as well. Dimensions that are left out get their usual sizes.
        manifest: Its dimensions, their sizes in the example, and what the trace is good for.

    Returns:
        The profiles; none for a model without dynamic dimensions.

    Raises:
        ConfigError: A text is of another form, or of sizes or dimensions that the package has not.
    """
    if texts and not manifest.dims:
        raise ConfigError(f"profile is '{texts[0]}', but the package has no dynamic dimension.")
    if not manifest.dims:
        return ()
    usual = usual_profile(manifest)
    return tuple({**usual, **_parse(text, manifest)} for text in texts) or (usual,)


def fixed_places(profiles: Sequence[Profile], manifest: Manifest) -> int | None:
    """Return how many places caches have that are written in place; None without such caches.

    Raises:
        ConfigError: Profiles leave it open, or have more tokens than that.
    """
    if manifest.caches is None:
        return None
    spans = {str(profile[BUFFER]): profile[BUFFER] for profile in profiles}
    (text, span), *others = spans.items()
    if others or span.min != span.max:
        raise ConfigError(
            f"profiles have {BUFFER}={', '.join([text, *(other for other, _ in others)])}:"
            " TensorRT writes into caches of one fixed number of places.",
            hint=f"Say how many tokens a cache is to hold at most: --profile {BUFFER}=4096.",
        )
    total = manifest.caches.past_length.partition(" - ")[0]
    longest = max((profile[total].max for profile in profiles if total in profile), default=0)
    if longest > span.max:
        raise ConfigError(
            f"profiles have up to {longest} for '{total}', and caches of {span.max} places.",
            hint=f"Give both: --profile {BUFFER}={span.max},{total}=1..{span.max}.",
        )
    return span.max


def usual_profile(manifest: Manifest) -> Profile:
    """Return the profile of a package for which the user named no sizes.

    They go from the least that the trace is good for, 1 if it says nothing, to the most, or four
    times the example's if it says nothing; they are tuned for the example's.
    """
    usual = {}
    for name, example in manifest.dims.items():
        least, most = manifest.dim_ranges.get(name) or (1, None)
        usual[name] = Span(least, example, example * _MOST_TIMES_EXAMPLE if most is None else most)
    return usual


def shapes(inputs: Sequence[TensorInfo], profile: Profile) -> dict[str, ShapeRange]:
    """Return the shapes of the inputs that a profile means."""

    def sized(info: TensorInfo, end: str) -> tuple[int, ...]:
        sizes = {name: getattr(span, end) for name, span in profile.items()}
        place = f"input '{info.name}'"
        # An axis may be an expression of a dimension, such as `past + 1`.
        return tuple(
            size if isinstance(size, int) else DimExpr.parse(size, place=place).evaluate(sizes)
            for size in info.shape
        )

    return {
        info.name: (sized(info, "min"), sized(info, "opt"), sized(info, "max")) for info in inputs
    }


def opt_sizes(profile: Profile) -> dict[str, int]:
    """Return the sizes that a profile is tuned for."""
    return {name: span.opt for name, span in profile.items()}


def profile_text(profile: Profile) -> str:
    """Return a profile as text: `batch=1..8..32,seq=128`."""
    return ",".join(f"{name}={span}" for name, span in profile.items())


def _parse(text: str, manifest: Manifest) -> dict[str, Span]:
    found: dict[str, Span] = {}
    for part in text.replace(" ", "").split(","):
        match = _DIM.fullmatch(part)
        if match is None:
            raise ConfigError(
                f"profile '{text}': '{part}' is of another form, expected NAME=MIN..OPT..MAX, such"
                " as batch=1..8..32."
            )
        name = match["name"]
        if name in found:
            raise ConfigError(f"profile '{text}' has '{name}' twice.")
        sizes = [int(size) for size in match["spans"].split("..")]
        # `8` is 8..8..8; `1..32` is 1..32..32, tuned for the largest; of three the middle one
        # counts.
        found[name] = Span(sizes[0], sizes[len(sizes) // 2], sizes[-1])
        _check_span(text, name, found[name], manifest)
    return found


def _check_span(text: str, name: str, span: Span, manifest: Manifest) -> None:
    if name not in manifest.dims:
        raise ConfigError(
            f"profile '{text}': the package has no dynamic dimension '{name}', only"
            f" {', '.join(manifest.dims)}.",
            hint=did_you_mean(name, manifest.dims) or None,
        )
    if not span.min <= span.opt <= span.max:
        raise ConfigError(f"profile '{text}': {name}={span} does not rise from MIN to MAX.")
    least, most = manifest.dim_ranges.get(name, (0, None))
    most = LARGEST if most is None else most
    if span.min < least or span.max > most:
        raise ConfigError(
            f"profile '{text}': {name} is {span}, the package takes {least} to {most}.",
            hint="Export the model with an example of such sizes to lift the limit."
            if most != LARGEST
            else None,
        )
