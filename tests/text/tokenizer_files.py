"""Write the files of a small tokenizer: a token for each printable character of ASCII."""

import json
from pathlib import Path

SPECIAL = ("<pad>", "<s>", "</s>")
CHARACTERS = [chr(code) for code in range(0x21, 0x7F)]  # with SPECIAL, 97 tokens


def write_tokenizer(root: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json, as fast tokenizers of transformers do."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [
            {"id": number, "content": token, "special": True} | dict.fromkeys(_MARKS, False)
            for number, token in enumerate(SPECIAL)
        ],
        "pre_tokenizer": level,
        "decoder": level,
        "model": {
            "type": "BPE",
            "vocab": {token: number for number, token in enumerate((*SPECIAL, *CHARACTERS))},
            "merges": [],
        },
    }
    config = {
        "tokenizer_class": "GPT2Tokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
    }
    (root / "tokenizer.json").write_text(json.dumps(tokenizer))
    (root / "tokenizer_config.json").write_text(json.dumps(config))


_MARKS = ("single_word", "lstrip", "rstrip", "normalized")
