"""Text of tokens comes whole, however its characters are cut."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from moh_deploy.errors import ConfigError, PackageError
from moh_deploy.runtime.text.tokenizer import TextStream, Tokenizer

TEXT = "naïve ☕ 𝄞!"


class Bytes:
    """A tokenizer whose tokens are bytes."""

    def encode(self, text: str) -> SimpleNamespace:
        return SimpleNamespace(ids=list(text.encode()))

    def decode(self, tokens: list[int], skip_special_tokens: bool) -> str:
        return bytes(tokens).decode(errors="replace")


def test_characters_come_when_they_are_complete():
    tokenizer = Tokenizer(Path("t"), Bytes())
    stream = TextStream(tokenizer, tokenizer.tokens_of("She is "))
    pieces = [stream.add(token) for token in tokenizer.tokens_of(TEXT)]
    assert "".join(pieces) == TEXT
    assert "�" not in "".join(pieces)
    assert pieces.count("") == len(TEXT.encode()) - len(TEXT)


@pytest.mark.parametrize("tokenizer", ["bytes", "words"])
def test_pieces_are_what_each_token_adds_to_the_whole_text(tokenizer: str):
    made = Tokenizer(Path("t"), Bytes() if tokenizer == "bytes" else Words())
    prompt, tokens = made.tokens_of("  She is "), made.tokens_of(f" {TEXT}  {TEXT}{TEXT} ")
    stream = TextStream(made, prompt)
    said = made.text_of(prompt)
    for end in range(1, len(tokens) + 1):
        said += stream.add(tokens[end - 1])
        whole = made.text_of([*prompt, *tokens[:end]])
        assert said == whole or whole.endswith("�")
    assert said == whole


def test_long_text_takes_no_longer_for_each_token():
    decoded: list[int] = []

    class Counted(Bytes):
        def decode(self, tokens: list[int], skip_special_tokens: bool) -> str:
            decoded.append(len(tokens))
            return super().decode(tokens, skip_special_tokens)

    tokenizer = Tokenizer(Path("t"), Counted())
    stream = TextStream(tokenizer, tokenizer.tokens_of("She is "))
    for token in tokenizer.tokens_of(TEXT * 9):
        stream.add(token)
    # One piece of text, and the bytes of the character behind it.
    assert max(decoded[3:]) <= 8


@dataclass
class Root:
    root: Path
    manifest: SimpleNamespace


def test_package_without_tokenizer_says_what_else_there_is(tmp_path: Path):
    package = Root(tmp_path, SimpleNamespace(files={}))
    with pytest.raises(PackageError, match=r"has no tokenizer\.json") as error:
        Tokenizer.of(package)
    assert "--tokens" in error.value.hint


def real(tmp_path: Path) -> Tokenizer:
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    made = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token=None))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(["she sells sea shells"] * 4, trainer)
    made.save(str(tmp_path / "tokenizer.json"))
    return Tokenizer.of(Root(tmp_path, SimpleNamespace(files={"tokenizer.json": "-"})))


def test_tokenizer_of_a_file_gives_text_back(tmp_path: Path):
    tokenizer = real(tmp_path)
    tokens = tokenizer.tokens_of(TEXT)
    assert tokenizer.text_of([0, *tokens]) == TEXT  # <s> is no text
    stream = TextStream(tokenizer, [0])
    assert "".join(stream.add(token) for token in tokens) == TEXT


def test_file_that_is_no_tokenizer_is_named(tmp_path: Path):
    real(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(PackageError, match=r"tokenizer\.json: cannot be read as a tokenizer"):
        Tokenizer.of(Root(tmp_path, SimpleNamespace(files={"tokenizer.json": "-"})))


def test_what_a_file_says_of_cutting_and_filling_up_is_for_training(tmp_path: Path):
    tokenizer = real(tmp_path)
    expected = tokenizer.tokens_of(TEXT)
    tokenizer._made.enable_truncation(3)
    tokenizer._made.enable_padding(length=40)
    tokenizer._made.save(str(tmp_path / "tokenizer.json"))
    again = Tokenizer.of(Root(tmp_path, SimpleNamespace(files={"tokenizer.json": "-"})))
    assert again.tokens_of(TEXT) == expected


class Words:
    """A tokenizer that loses the space before the first word, as those of LLaMA do."""

    def encode(self, text: str) -> SimpleNamespace:
        return SimpleNamespace(ids=[ord(item) for item in text])

    def decode(self, tokens: list[int], skip_special_tokens: bool) -> str:
        return "".join(map(chr, tokens)).removeprefix(" ")


def test_text_behind_a_prompt_keeps_its_first_space():
    tokenizer = Tokenizer(Path("t"), Words())
    prompt, new = tokenizer.tokens_of("Once upon a time"), tokenizer.tokens_of(" there was")
    assert tokenizer.text_of(new) == "there was"
    assert tokenizer.text_behind(prompt, new) == " there was"


def test_prompt_of_another_encoding_is_one_sentence():
    with pytest.raises(ConfigError, match="a prompt is no text: surrogates not allowed"):
        Tokenizer(Path("t"), Bytes()).tokens_of("caf\udce9")
