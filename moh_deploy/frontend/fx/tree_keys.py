"""Name the parts of a container by what its class's registration with PyTorch keeps of it."""

from __future__ import annotations


def names_in_context(context: object, count: int) -> list[str] | None:
    """Return the names of a container's `count` parts; None if the context does not tell them.

    Args:
        context: A list of names, as Hugging Face registers its outputs; or that and the names that
            are None, as torch.export.register_dataclass keeps them.
    """
    for names in (context, context[0] if isinstance(context, (list, tuple)) and context else None):
        if isinstance(names, (list, tuple)) and len(names) == count:
            texts = [name for name in names if isinstance(name, str)]
            if len(texts) == count:
                return texts
    return None
