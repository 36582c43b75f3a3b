"""Model directories of transformers' architectures, whose attention local code gates."""

import json
import textwrap
from dataclasses import dataclass
from pathlib import Path

import torch

from moh_deploy.config.export_config import ModelSection
from moh_deploy.frontend.load.load_directory import load_directory

# Each attention's output projection weighs the heads that it gets by those of its input.
CODE = """
    import torch
    import transformers
    from torch import nn


    class Gated(nn.Linear):
        def __init__(self, like, heads):
            super().__init__(like.in_features, like.out_features, bias=like.bias is not None)
            self.router = nn.Linear(like.in_features, heads, bias=False)

        def route(self, attention, args, kwargs):
            hidden_states = args[0] if args else kwargs["hidden_states"]
            scores = self.router(hidden_states).softmax(-1)
            best, index = scores.topk(scores.shape[-1] // 2, dim=-1)
            best = best / best.sum(-1, keepdim=True)
            self.gates = torch.zeros_like(scores).scatter(-1, index, best)

        def forward(self, x):
            x = x.unflatten(-1, (self.gates.shape[-1], -1)) * self.gates.unsqueeze(-1)
            return super().forward(x.flatten(-2))


    class MoH(transformers.CLASS):
        def __init__(self, config):
            super().__init__(config)
            for module in list(self.modules()):
                owner = getattr(module, "output", module)
                for name in ("out_proj", "o_proj", "dense"):
                    if type(module).__name__.endswith("Attention") and hasattr(owner, name):
                        gated = Gated(getattr(owner, name), 4)
                        setattr(owner, name, gated)
                        module.register_forward_pre_hook(gated.route, with_kwargs=True)
"""
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
TEXT = {**SIZES, "vocab_size": 97, "max_position_embeddings": 40, "eos_token_id": 2}
IMAGE = {**SIZES, "image_size": 32, "patch_size": 8}
WHISPER = {
    "d_model": 32,
    "vocab_size": 97,
    "num_mel_bins": 8,
    **{f"{part}_layers": 1 for part in ("encoder", "decoder")},
    **{f"{part}_attention_heads": 4 for part in ("encoder", "decoder")},
    **{f"{part}_ffn_dim": 48 for part in ("encoder", "decoder")},
    "max_source_positions": 20,
    "max_target_positions": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
WAV2VEC = {
    **SIZES,
    "vocab_size": 32,
    "conv_dim": [16, 16],
    "conv_kernel": [10, 3],
    "conv_stride": [5, 2],
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}


@dataclass(frozen=True)
class GatedDirectory:
    """A directory that is to be exported without a word about its inputs."""

    auto_class: str
    architecture: str  # the class of transformers that local code gates
    config: dict[str, object]
    inputs: str  # names of inputs and their dimensions
    layers: int


DIRECTORIES = (
    GatedDirectory(
        "AutoModel",
        "BertModel",
        TEXT,
        "input_ids, attention_mask, token_type_ids [batch, seq]",
        2,
    ),
    GatedDirectory(
        "AutoModelForSequenceClassification",
        "RobertaForSequenceClassification",
        {**TEXT, "type_vocab_size": 1},
        "input_ids, attention_mask [batch, seq]",
        2,
    ),
    GatedDirectory(
        "AutoModelForCausalLM",
        "LlamaForCausalLM",
        {**TEXT, "num_key_value_heads": 2},
        "input_ids, attention_mask [batch, seq]",
        2,
    ),
    GatedDirectory(
        "AutoModelForImageClassification",
        "ViTForImageClassification",
        IMAGE,
        "pixel_values [batch, 3, 32, 32]",
        2,
    ),
    GatedDirectory(
        "AutoModelForZeroShotImageClassification",
        "CLIPModel",
        {"text_config": TEXT, "vision_config": IMAGE, "projection_dim": 16},
        "input_ids, attention_mask [batch, seq]; pixel_values [image_batch, 3, 32, 32]",
        4,
    ),
    GatedDirectory(
        "AutoModelForImageTextToText",
        "LlavaForConditionalGeneration",
        {
            "text_config": {**TEXT, "model_type": "llama"},
            "vision_config": {**IMAGE, "model_type": "clip_vision_model"},
            "image_token_index": 96,
            "image_seq_length": 16,
        },
        "input_ids, attention_mask [1, seq]; pixel_values [1, 3, 32, 32]",
        4,
    ),
    GatedDirectory(
        "AutoModelForTokenClassification",
        "LayoutLMForTokenClassification",
        TEXT,
        "input_ids, attention_mask, token_type_ids [batch, seq]; bbox [batch, seq, 4]",
        2,
    ),
    GatedDirectory(
        "AutoModelForSpeechSeq2Seq",
        "WhisperForConditionalGeneration",
        WHISPER,
        "input_features [batch, 8, 40]; decoder_input_ids [batch, decoder_seq]",
        3,
    ),
    GatedDirectory(
        "AutoModelForCTC", "Wav2Vec2ForCTC", WAV2VEC, "input_values [batch, samples]", 2
    ),
    GatedDirectory(
        "AutoModelForAudioClassification",
        "ASTForAudioClassification",
        {
            **SIZES,
            "max_length": 40,
            "num_mel_bins": 16,
            "patch_size": 8,
            "frequency_stride": 8,
            "time_stride": 8,
        },
        "input_values [batch, 40, 16]",
        2,
    ),
)


def write_gated_directory(root: Path, case: GatedDirectory) -> torch.nn.Module:
    """Write a directory as transformers writes it, and return the model in it."""
    import transformers

    root.mkdir()
    code = textwrap.dedent(CODE).replace("CLASS", case.architecture)
    (root / "modeling_moh.py").write_text(code)
    namespace: dict[str, type[torch.nn.Module]] = {"__name__": "modeling_moh"}
    exec(compile(code, "modeling_moh.py", "exec"), namespace)
    config_class = getattr(transformers, case.architecture).config_class
    torch.manual_seed(3)
    model = namespace["MoH"](config_class(**case.config)).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(root)
    path = root / "config.json"
    config = json.loads(path.read_text())
    auto_map = {case.auto_class: "modeling_moh.MoH"}
    path.write_text(json.dumps({**config, "auto_map": auto_map}))
    return model


def read_directory(root: Path) -> torch.nn.Module:
    """Return the model of a directory, in eval mode."""
    return load_directory(root, ModelSection(), trust_code=True, trust_pickle=False).module.eval()
