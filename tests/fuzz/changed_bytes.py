"""Bytes with a few of them changed, moved or missing."""

from typing import NamedTuple

from hypothesis import strategies as st

_ODD = (0, 1, 0x7F, 0x80, 0xFE, 0xFF)


class ByteChange(NamedTuple):
    """One change.

    Attributes:
        kind: What is done.
        place: Where, in 2^16ths of the length.
        length: Of what is removed, repeated or zeroed.
        byte: What is written.
    """

    kind: str
    place: int
    length: int
    byte: int


byte_changes = st.lists(
    st.builds(
        ByteChange,
        st.sampled_from(["set", "set", "set", "insert", "remove", "repeat", "fill", "cut"]),
        st.integers(0, 2**16 - 1),
        st.sampled_from([1, 2, 4, 8, 100, 5000]),
        st.sampled_from(_ODD) | st.integers(0, 255),
    ),
    min_size=1,
    max_size=4,
)


def change_bytes(content: bytes, changes: list[ByteChange]) -> bytes:
    """Return the bytes with all changes made."""
    for kind, place, length, byte in changes:
        at = place * len(content) >> 16
        head, body, tail = content[:at], content[at : at + length], content[at + length :]
        content = {
            "set": head + bytes([byte]) + content[at + 1 :],
            "insert": head + bytes([byte]) * length + content[at:],
            "remove": head + tail,
            "repeat": head + body + body + tail,
            "fill": head + bytes([byte]) * len(body) + tail,
            "cut": head,
        }[kind]
    return content
