"""The report of `generate`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from moh_deploy.config.dtypes import IntegerPrecision
from moh_deploy.errors import MoHDeployError
from moh_deploy.report.document import Document, Share, Table, Text
from moh_deploy.report.numbers import count
from moh_deploy.report.report import Report
from moh_deploy.runtime.kernel_use import KernelUse
from moh_deploy.runtime.layer_runs import LayerRun
from moh_deploy.runtime.layers_text import runs_text
from moh_deploy.validate.compare.token_parity import TokenParity


@dataclass(frozen=True)
class GeneratedText:
    """The tokens and the text that were added to one prompt.

    Attributes:
        prompt_tokens: How many tokens the prompt has.
        tokens: What was added, the token that ends a text included.
        text: The same as text; None without a tokenizer.
        ended: Whether the last of them ends a text; else the length was reached.
    """

    prompt_tokens: int
    tokens: tuple[int, ...]
    text: str | None
    ended: bool


@dataclass(frozen=True)
class GenerateReport(Report):
    """Texts that a package generated.

    Attributes:
        package: The package.
        texts: One for each prompt.
        prompt_tokens: Of all prompts.
        prompt_seconds: How long they took together, in one batch.
        new_tokens: Of all texts.
        step_seconds: How long the steps behind the prompts took.
        steps: How many there were.
        open_heads: Share of open heads, over tokens and layers; None without MoH layers.
        layer_runs: What ran each MoH layer.
        kernels: The kernel library that was registered, or why none was.
        parity: The comparison with another model; None where none was named.
    """

    package: Path
    texts: tuple[GeneratedText, ...]
    prompt_tokens: int
    prompt_seconds: float
    new_tokens: int
    step_seconds: float
    steps: int
    open_heads: float | None
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
        return Document(
            "generate",
            tuple(sections),
            remarks=(runs_text(self.layer_runs), self.kernels.describe()),
        )


def parity_sections(parity: TokenParity) -> list[Table | Text]:
    """Return the verdict of a comparison of tokens, and where texts part."""
    words = {"not equal": "OTHER tokens", "equal": "EQUAL tokens"}.get(parity.verdict)
    if words is None:
        in_integers = parity.precision in get_args(IntegerPrecision)
        parted = "tokens part by rounding alone"
        words = f"WITHIN TOLERANCE ({parity.precision})" if in_integers else parted
    same = parity.compared - len(parity.differences)
    found = f"{same} of {count(parity.tokens, 'greedy token')} are the same before texts part"
    is_good = parity.verdict != "not equal"
    verdict = Text(f"{words}: {found}, compared with {parity.against}", is_good)
    if not parity.differences:
        return [verdict]
    columns = ("prompt", "#equal before", "#token", "#expected", "#margin", "explained")
    rows = [
        (
            str(difference.prompt),
            difference.position,
            difference.token,
            difference.expected,
            difference.margin,
            difference.is_near_tie,
        )
        for difference in parity.differences
    ]
    return [verdict, Table("first tokens that differ", columns, rows)]
