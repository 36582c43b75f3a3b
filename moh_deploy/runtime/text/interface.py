"""Tell a package that generates text by its inputs and outputs, and make empty caches for it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from moh_deploy.errors import ConfigError, PackageError
from moh_deploy.ops.cases import numpy_dtype
from moh_deploy.package import Manifest, TensorInfo, TextGeneration
from moh_deploy.runtime.base import Model
from moh_deploy.runtime.models import PackageDir
from moh_deploy.system.npz import Array

_PAST = re.compile(r"past_key_values\.(\d+)\.(key|value)")


@dataclass(frozen=True)
class TextInterface:
    """The inputs and outputs of a package that `--task text-generation` made."""

    # What its manifest says of generating text; `context_length` is the most tokens that its graph
    # is good for, too.
    about: TextGeneration
    caches: tuple[TensorInfo, ...]  # the inputs of the cache, [batch, heads, past, size]
    present: tuple[str, ...]  # name of the output that becomes each of them, in their order
    # Whether caches are buffers with room, into which new tokens are written.
    in_place: bool = False
    # The most tokens that it takes at once; None where nothing limits them.
    longest_prompt: int | None = None

    @classmethod
    def of(cls, manifest: Manifest, name: str) -> TextInterface:
        """Read it from a manifest.

        Args:
            name: Of the package, for messages.

        Raises:
            PackageError: The package takes something else.
        """
        caches = tuple(info for info in manifest.inputs if _PAST.fullmatch(info.name))
        present = tuple(cache.name.replace("past_key_values", "present", 1) for cache in caches)
        # Anything besides would have to be fed with something, and nothing says what.
        expected_inputs = {"input_ids", "attention_mask", *(cache.name for cache in caches)}
        missing = {"logits", *present} - {output.name for output in manifest.outputs}
        takes = {info.name for info in manifest.inputs}
        if manifest.text_generation is None or takes != expected_inputs or missing or not caches:
            raise PackageError(
                f"{name} generates no text: it takes {', '.join(sorted(takes)[:4])}.",
                hint="Export the language model with --task text-generation.",
            )
        about = replace(manifest.text_generation, context_length=_most_tokens(manifest, caches[0]))
        longest = min(_limits(manifest, "input_ids"), default=None)
        return cls(about, caches, present, manifest.caches is not None, longest)

    @property
    def padding(self) -> int:
        """The token that stands for padding; its value does not matter."""
        ends = self.about.eos_token_ids
        return next(iter(ends), 0) if self.about.pad_token_id is None else self.about.pad_token_id

    def empty_caches(self, batch: int, most_tokens: int) -> dict[str, Array]:
        """Return what the cache is before the first token.

        Args:
            most_tokens: How many places it has to have, of prompt and answer, if it cannot grow.
        """
        tokens = most_tokens if self.in_place else 0
        return {
            cache.name: np.zeros(
                [
                    batch if dim == "batch" else dim if isinstance(dim, int) else tokens
                    for dim in cache.shape
                ],
                numpy_dtype(cache.dtype),
            )
            for cache in self.caches
        }

    @property
    def following(self) -> dict[str, str]:
        """The name of each cache to the output that is the cache of the next run."""
        names = (cache.name for cache in self.caches)
        return dict(zip(names, self.present, strict=True))


def _most_tokens(manifest: Manifest, cache: TensorInfo) -> int | None:
    """Return how many tokens a text may have by the model's config and by what was traced."""
    assert manifest.text_generation is not None
    past, new = cache.shape[2], _shape(manifest, "input_ids")[1]
    limits = [
        manifest.text_generation.context_length,
        None if manifest.caches is None else manifest.caches.most_tokens,
        *_limits(manifest, "attention_mask"),
        *(dim_sum.most for dim_sum in manifest.dim_sums if {past, new}.issuperset(dim_sum.dims)),
        # The last token may be a step behind the longest cache; buffers are limited above.
        *(most + 1 for most in _limits(manifest, cache.name, axis=2) if manifest.caches is None),
    ]
    return min((limit for limit in limits if limit is not None), default=None)


def _limits(manifest: Manifest, name: str, *, axis: int = 1) -> Iterator[int]:
    """Yield the largest size of an axis of an input that the trace is good for, if there is one."""
    most = manifest.dim_ranges.get(str(_shape(manifest, name)[axis]), (0, None))[1]
    if most is not None:
        yield most


def _shape(manifest: Manifest, name: str) -> tuple[int | str, ...]:
    (found,) = (info.shape for info in manifest.inputs if info.name == name)
    return found


# The inputs and outputs of a reference that generates the same text: another package, or the
# original.


def reference_interface(reference: Model, compared: TextInterface, name: str) -> TextInterface:
    """Return the inputs and outputs of a reference: a package has its own, with caches that grow or
    have room, of whatever dtype; all else is called as what is compared with it.

    Args:
        compared: Of what is compared with it.
        name: Of that, for messages.

    Raises:
        ConfigError: Both have other tokens or other heads.
        PackageError: The reference is a package that generates no text.
    """
    if not isinstance(reference, PackageDir):
        return compared
    own = TextInterface.of(reference.manifest, str(reference.root))
    if _form(own) != _form(compared):
        raise ConfigError(
            f"{reference.root} has {own.about.vocab_size} tokens and {len(own.caches)} caches,"
            f" {name} {compared.about.vocab_size} and {len(compared.caches)}, or caches of other"
            " sizes: they are no forms of one model.",
        )
    return own


def _form(interface: TextInterface) -> tuple[object, ...]:
    # [batch, heads, past, size]
    caches = tuple((cache.name, cache.shape[1], cache.shape[3]) for cache in interface.caches)
    return interface.about.vocab_size, caches
