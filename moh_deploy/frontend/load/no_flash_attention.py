"""Stand-ins for what is imported from flash-attn: kernels that no ONNX model has.

Code that imports them and chooses another attention can be loaded; one that calls them is told.
"""

from collections.abc import Callable


def __getattr__(name: str) -> Callable[..., object]:
    if name.startswith("__"):
        raise AttributeError(name)

    def called(*_: object, **__: object) -> object:
        raise RuntimeError(
            f"the model calls '{name}' of flash-attn, which has no form in ONNX; let it choose"
            " 'eager' or 'sdpa' (attn_implementation)"
        )

    return called
