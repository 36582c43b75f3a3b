"""The inputs and outputs of a reference that generates the same text: another package, or the
original.
"""

from __future__ import annotations

from moh_deploy.errors import ConfigError
from moh_deploy.runtime.base import Model
from moh_deploy.runtime.models import PackageDir
from moh_deploy.runtime.text.interface import TextInterface


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
