"""The tokenizer that lies in a package: text to tokens, and tokens to text while they come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moh_deploy.errors import BackendError, ConfigError, PackageError
from moh_deploy.package import TOKENIZER_NAME, OnnxPackage

_TOKENS_HINT = "Give the prompt as numbers: --tokens 1,15,27."
_UNFINISHED = "�"  # what a character of several bytes is until its last token is there


@dataclass(frozen=True)
class Tokenizer:
    """Turns text into tokens, and back."""

    path: Path  # its file
    _made: Any = field(repr=False)

    @classmethod
    def of(cls, package: OnnxPackage) -> Tokenizer:
        """Open that of a package.

        Raises:
            PackageError: The package lacks it, or its file is not a tokenizer.
            BackendError: The library for it is not installed.
        """
        path = package.root / TOKENIZER_NAME
        if TOKENIZER_NAME not in package.manifest.files:
            raise PackageError(
                f"{package.root} has no {TOKENIZER_NAME}: its model came without a tokenizer.",
                hint=_TOKENS_HINT,
            )
        try:
            from tokenizers import Tokenizer as FromFile
        except ModuleNotFoundError as error:
            raise BackendError(
                "not installed: tokenizers, which reads a prompt's text.",
                hint=f"pip install 'moh-deploy[text]'. Or else: {_TOKENS_HINT}",
            ) from error
        try:
            made = FromFile.from_file(str(path))
            # A file has what was set when it was saved: to cut texts, or to fill them up.
            made.no_truncation()
            made.no_padding()
            return cls(path, made)
        except Exception as error:  # it raises Exception itself
            raise PackageError(f"{path}: cannot be read as a tokenizer: {error}.") from error

    def tokens_of(self, text: str) -> list[int]:
        """Return the tokens of a text, with those that it puts before every text.

        Raises:
            ConfigError: It is no text: bytes of another encoding than UTF-8 were taken for it.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ConfigError(
                f"a prompt is no text: {error.reason}.", hint="Give it in UTF-8."
            ) from error
        return list(self._made.encode(text).ids)

    def text_of(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, without those that only mark where it begins or ends."""
        return str(self._made.decode(list(tokens), skip_special_tokens=True))

    def text_behind(self, prompt: Sequence[int], tokens: Sequence[int]) -> str:
        """Return the text of tokens as it stands behind a prompt.

        By themselves many lose the space that they begin with.
        """
        before, whole = self.text_of(prompt), self.text_of([*prompt, *tokens])
        return whole[len(before) :] if whole.startswith(before) else self.text_of(tokens)


class TextStream:
    """Says what each further token adds to a text.

    Only tokens since the last piece of text are decoded anew, behind those of that piece: a token's
    text may hang on the one before it, and a long text takes no longer per token.

    Args:
        tokenizer: Its tokenizer.
        prompt: Tokens that stand before.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._tokens = list(prompt)  # those of the last piece, and all behind it
        self._piece = len(self._tokens)  # how many of them are of that piece
        self._said = tokenizer.text_of(self._tokens)

    def add(self, token: int) -> str:
        """Return what a token adds; nothing while a character is not complete."""
        self._tokens.append(token)
        text = self._tokenizer.text_of(self._tokens)
        if text.endswith(_UNFINISHED):
            return ""
        added = text[len(self._said) :] if text.startswith(self._said) else ""
        self._said = text
        if added:
            self._tokens = self._tokens[self._piece :]
            self._piece = len(self._tokens)
            self._said = self._tokenizer.text_of(self._tokens)
        return added
