"""The report of `generate`."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from moh_deploy.config.dtypes import FEW_BITS
from moh_deploy.errors import MoHDeployError, ValidationError
from moh_deploy.report.document import Cell, Document, Share, Table, Text
from moh_deploy.report.report import Report, count, in_json
from moh_deploy.runtime.kernel_use import KernelUse
from moh_deploy.runtime.layer_runs import LayerRun
from moh_deploy.runtime.layers_text import runs_text
from moh_deploy.runtime.text.decoding import DecodedStep
from moh_deploy.validate.compare.tolerances import rule_name, tolerance_for

# Compare the tokens that two models generate: where the first ones part, and by how little.


@dataclass(frozen=True)
class TokenDifference:
    """The first token of a text that is another one."""

    prompt: int  # Number of the prompt, from 1
    position: int  # How many tokens of the text are equal before it
    token: int
    expected: int
    margin: float  # By how much the reference's logit of its token exceeds that of the other
    # How far logits may be off, by rounding alone: below twice that nothing is decided.
    allowed: float

    @property
    @in_json("explained")
    def is_near_tie(self) -> bool:
        """Tell whether rounding alone may have chosen."""
        return self.margin <= 2 * self.allowed


@dataclass(frozen=True)
class TokenParity:
    """The comparison of what was generated with what another model generates."""

    against: str  # The other model, in words
    compared: int  # How many tokens were compared: of each text up to its first difference
    differences: tuple[TokenDifference, ...]
    tokens: int
    precision: str

    @property
    @in_json()
    def verdict(self) -> Literal["equal", "within tolerance", "not equal"]:
        """The answer. Where texts part, or weights are in int8 or int4, nothing is called equal."""
        if self.unexplained:
            return "not equal"
        in_few_bits = self.precision in FEW_BITS
        return "within tolerance" if self.differences or in_few_bits else "equal"

    @property
    def unexplained(self) -> tuple[TokenDifference, ...]:
        """The differences that rounding does not explain."""
        return tuple(difference for difference in self.differences if not difference.is_near_tie)

    def failure(self, subject: str) -> ValidationError | None:
        """Say which token is another one, and not by rounding alone; None where none is.

        Args:
            subject: What was compared, in words.
        """
        if not self.unexplained:
            return None
        first = self.unexplained[0]
        return ValidationError(
            f"{subject} does not generate what {self.against} does: of prompt"
            f" {first.prompt}, token {first.position + 1} is {first.token}, expected"
            f" {first.expected}; its logit is larger by {first.margin:.3g} there, rounding explains"
            f" {2 * first.allowed:.3g}.",
            hint="`moh-deploy verify` compares outputs and routing on recorded runs, and names the"
            " layer that differs first.",
        )


class TokenComparison:
    """Compares steps as they come; a row is looked at up to its first difference.

    Args:
        reference: Steps of the reference, in order; of a text they may be fewer or more.
        precision: Of the model that is compared: says what rounding may move.
    """

    def __init__(self, reference: Iterable[DecodedStep], precision: str) -> None:
        self._reference = iter(reference)
        self._precision = precision
        self._relative = tolerance_for(rule_name(precision))
        self.differences: list[TokenDifference] = []
        self.compared = 0
        self._tokens = 0

    def add(self, step: DecodedStep, position: int) -> None:
        """Compare one step with the reference's next one."""
        expected = next(self._reference, None)
        self._tokens += sum(token is not None for token in step.tokens)
        parted = {difference.prompt for difference in self.differences}
        for row, token in enumerate(step.tokens):
            known = None if expected is None else expected.tokens[row]
            if row + 1 in parted or token is None or known is None or expected is None:
                continue
            self.compared += 1
            if token != known:
                logits = expected.logits[row]
                # Tokens that the model rules out (-inf, or the least number) say nothing of size.
                seen = logits[logits > np.finfo(np.float16).min]
                self.differences.append(
                    TokenDifference(
                        prompt=row + 1,
                        position=position,
                        token=token,
                        expected=known,
                        margin=float(logits[known] - logits[token]),
                        allowed=self._relative.limit(float(np.abs(seen).max(initial=0.0))),
                    )
                )

    def parity(self, against: str) -> TokenParity:
        """Return the comparison so far, with the other model in words."""
        differences = tuple(self.differences)
        return TokenParity(against, self.compared, differences, self._tokens, self._precision)


@dataclass(frozen=True)
class GeneratedText:
    """The tokens and the text that were added to one prompt."""

    prompt_tokens: int
    tokens: tuple[int, ...]  # What was added, the token that ends a text included
    text: str | None  # The same as text; None without a tokenizer
    ended: bool  # Whether the last of them ends a text; else the length was reached


@dataclass(frozen=True)
class GenerateReport(Report):
    """Texts that a package generated."""

    package: Path
    texts: tuple[GeneratedText, ...]
    prompt_tokens: int
    prompt_seconds: float  # How long they took together, in one batch
    new_tokens: int
    step_seconds: float  # How long the steps behind the prompts took
    steps: int
    open_heads: float | None  # Share of open heads, over tokens and layers; None without MoH layers
    layer_runs: tuple[LayerRun, ...]
    kernels: KernelUse
    parity: TokenParity | None = None

    @property
    def failure(self) -> MoHDeployError | None:
        """The first token that is another one, and not by rounding alone."""
        return None if self.parity is None else self.parity.failure(str(self.package))

    @property
    def tokens_per_second(self) -> float | None:
        """New tokens behind the first ones, of all texts together; None without a step."""
        new = self.new_tokens - len(self.texts)
        return new / self.step_seconds if self.steps and self.step_seconds > 0 else None

    def document(self) -> Document:
        """Return what it says."""
        rate = self.tokens_per_second
        rows: list[tuple[str, str | Share]] = [
            ("prompt", f"{self.prompt_tokens} tokens in {self.prompt_seconds:.3g} s"),
            ("generated", f"{self.new_tokens} tokens"),
        ]
        if rate is not None:
            rows.append(("speed", f"{rate:.3g} tokens/s"))
        if self.open_heads is not None:
            rows.append(("open heads", Share(self.open_heads)))
        sections: list[Table | Text] = [Table("generated text", ("", "value"), rows)]
        if self.parity is not None:
            sections += parity_sections(self.parity)
        remarks = (runs_text(self.layer_runs), self.kernels.describe())
        return Document("generate", tuple(sections), remarks=remarks)


def parity_sections(parity: TokenParity) -> list[Table | Text]:
    """Return the verdict of a comparison of tokens, and where texts part."""
    words = {"not equal": "OTHER tokens", "equal": "EQUAL tokens"}.get(parity.verdict)
    if words is None:
        in_few_bits = parity.precision in FEW_BITS
        parted = "tokens part by rounding alone"
        words = f"WITHIN TOLERANCE ({parity.precision})" if in_few_bits else parted
    same = parity.compared - len(parity.differences)
    words_of = f"{same} of {count(parity.tokens, 'greedy token')} are the same before texts part"
    is_good = parity.verdict != "not equal"
    verdict = Text(f"{words}: {words_of}, compared with {parity.against}", is_good)
    if not parity.differences:
        return [verdict]
    columns = ("prompt", "#equal before", "#token", "#expected", "#margin", "explained")
    rows: list[tuple[Cell, ...]] = []
    for found in parity.differences:
        tokens = (found.position, found.token, found.expected)
        rows.append((str(found.prompt), *tokens, found.margin, found.is_near_tie))
    return [verdict, Table("first tokens that differ", columns, rows)]
