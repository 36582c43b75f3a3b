"""Generate tokens by onnxruntime-genai itself, for prompts of several lengths in one batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from moh_deploy.errors import BackendError

_INSTALL = "pip install 'moh-deploy[genai]'."


def genai_tokens(
    root: Path, prompts: Sequence[Sequence[int]], padding: int, max_tokens: int
) -> Iterator[tuple[int, ...]]:
    """Yield what each step adds to the prompts, greedy: a token for each, until all have ended.

    genai pads on the right: the mask has a gap between a shorter prompt and what is added to it.

    Raises:
        BackendError: genai is not installed, does not open the bundle, or fails.
    """
    try:
        import onnxruntime_genai as og  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError as error:
        raise BackendError(
            f"onnxruntime-genai cannot be imported: {error}.",
            hint=f"{_INSTALL} It runs the bundle, whose tokens are compared.",
        ) from error
    longest = max(map(len, prompts))
    ids = np.full((len(prompts), longest), padding, np.int32)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = prompt
    try:
        model = og.Model(str(root))
        settings = og.GeneratorParams(model)
        settings.set_search_options(
            batch_size=len(prompts), max_length=longest + max_tokens, do_sample=False
        )
        generator = og.Generator(model, settings)
        generator.append_tokens(ids)
        while not generator.is_done():
            generator.generate_next_token()
            yield tuple(map(int, generator.get_next_tokens()))
    except Exception as error:  # genai raises RuntimeError, and what ONNX Runtime raises
        raise BackendError(
            f"onnxruntime-genai {og.__version__} does not run {root}: {error}",
            hint="`moh-deploy verify` of its package/ says whether ONNX Runtime alone does.",
        ) from error
