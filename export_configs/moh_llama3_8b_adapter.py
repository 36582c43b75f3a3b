"""Give MoH-LLaMA3 a forward of positional tensors, so that it can be traced.

The original model takes keyword arguments and a cache object, and returns an output object. This
file belongs to the configurations beside it: copy and change it for a language model of your own.
`modeling_llama` is the original code.
"""

from __future__ import annotations

import torch
import transformers
from transformers import LlamaConfig

try:
    from modeling_llama import LlamaForCausalLM
    from transformers.modeling_utils import no_init_weights
except ImportError as error:
    if not (error.name or "").startswith("transformers"):
        raise
    raise ImportError(
        f"{error}. The original code needs transformers 4.37.2, here is {transformers.__version__}:"
        " pip install transformers==4.37.2, or export the model's directory, config.json beside the"
        " weights, which runs with today's"
    ) from error


class TracedLlama(LlamaForCausalLM):
    """The original model, with the same weight names."""

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, *past: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Run the model.

        Args:
            input_ids: New tokens, [batch, seq].
            attention_mask: 1 for tokens, 0 for padding, cached ones included, [batch, past + seq].
            past: Key and value of each layer in turn, [batch, kv_heads, past, head_dim]; none at
                the start.

        Returns:
            Logits [batch, seq, vocab], then key and value of each layer, [batch, kv_heads,
            past + seq, head_dim].
        """
        positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        logits, present, *_ = super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=positions[:, -input_ids.shape[1] :],
            past_key_values=tuple(zip(past[::2], past[1::2], strict=True)) or None,
            use_cache=True,
            return_dict=False,
        )
        return logits, *(tensor for layer in present for tensor in layer)


def build(*, dtype: str = "float32", **config: object) -> torch.nn.Module:
    """Return a model whose weights are still to be loaded.

    Args:
        dtype: Precision of the weights, such as `bfloat16`.
        config: Fields of LlamaConfig.
    """
    # "eager" builds the mask without looking at its values, which could not be traced; the
    # attention itself is the same.
    llama_config = LlamaConfig(**config)
    with no_init_weights():
        return TracedLlama._from_config(
            llama_config, torch_dtype=getattr(torch, dtype), attn_implementation="eager"
        )
