"""The text that the example learns, which Python itself ships, and bytes as tokens.

It is the language reference as `help()` shows it. A token is a byte, so that every text has tokens;
`tokenizer.json` says so to what reads such files. Byte 0, which no topic holds, ends each.
"""

from __future__ import annotations

import json
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np

VOCAB_SIZE = 256
END = 0
_HELD_OUT_EVERY = 10


def load_text() -> tuple[np.ndarray, np.ndarray]:
    """Return the bytes of the training text, and those of every tenth topic, which is held out."""
    names = sorted(topics)
    held_out = set(names[::_HELD_OUT_EVERY])
    return (
        _tokens([topics[name] for name in names if name not in held_out]),
        _tokens([topics[name] for name in names if name in held_out]),
    )


def windows(tokens: np.ndarray, length: int, count: int) -> np.ndarray:
    """Return parts of a text [count, length], evenly spread over it."""
    starts = np.linspace(0, len(tokens) - length, count).astype(int)
    return np.stack([tokens[start : start + length] for start in starts])


def write_tokenizer(directory: Path) -> None:
    """Write the files that say that a token is a byte."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": byte_level | {"trim_offsets": True},
        "decoder": byte_level | {"trim_offsets": True},
        # No merges: each byte stays a token.
        "model": {"type": "BPE", "vocab": _byte_names(), "merges": []},
    }
    text = json.dumps(tokenizer, indent=1, ensure_ascii=False)
    (directory / "tokenizer.json").write_text(text, encoding="utf-8")
    (directory / "tokenizer_config.json").write_text('{"clean_up_tokenization_spaces": false}\n')


def _byte_names() -> dict[str, int]:
    """Return the character by which a byte-level tokenizer names each byte.

    A byte that is a visible character of Latin-1 is itself; the others are, in order, the
    characters from U+0100 on.
    """
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return {chr(byte if byte in visible else next(others)): byte for byte in range(VOCAB_SIZE)}


def _tokens(texts: list[str]) -> np.ndarray:
    joined = b"".join(text.strip().encode() + bytes([END]) for text in texts)
    return np.frombuffer(joined, np.uint8).astype(np.int64)
