"""Prove a bundle for genai: its package by recorded runs, and then the tokens of genai itself."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from moh_deploy.errors import BackendError, MoHDeployError, ValidationError
from moh_deploy.package import OnnxPackage
from moh_deploy.report.document import Document, Table, Text
from moh_deploy.report.report import HIDDEN, Report, in_json
from moh_deploy.runtime.base import Model, Variant
from moh_deploy.runtime.open_runner import opened_package
from moh_deploy.runtime.text.decoding import DecodedStep, Decoding, check_prompts
from moh_deploy.runtime.text.interface import TextInterface, reference_interface
from moh_deploy.serving.genai import bundle
from moh_deploy.serving.source import require_own_code
from moh_deploy.system.progress import Progress
from moh_deploy.validate.compare.generate_report import (
    TokenComparison,
    TokenParity,
    parity_sections,
)
from moh_deploy.validate.compare.parity import compare_recorded

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


PROMPT_LENGTHS = (1, 7, 40)
MOST_STEPS = 64


@dataclass(frozen=True)
class GenaiVerification(Report):
    """A comparison of a bundle's tokens."""

    # Of its JSON; docs/verify-genai.schema.json describes it.
    schema_version: Literal[1] = field(default=1, init=False)
    root: Path = field(metadata=HIDDEN)  # the command line says it
    prompt_lengths: tuple[int, ...]  # tokens of each prompt of the batch
    steps: int  # the most tokens that were added to each
    parity: TokenParity  # genai's tokens beside those of the reference
    # The package beside its recorded runs: EQUAL, WITHIN TOLERANCE (int4).
    recorded: str = field(default="EQUAL", metadata=HIDDEN)

    @property
    @in_json()
    def equal(self) -> bool:
        """Tell whether no token differs by more than rounding explains."""
        return self.failure is None

    @property
    def failure(self) -> MoHDeployError | None:
        """The first token that is another one, and not by rounding alone."""
        return self.parity.failure(f"{self.root}, run by genai,")

    def document(self) -> Document:
        """Return what it says."""
        lengths = ", ".join(map(str, self.prompt_lengths))
        prompts = f"{len(self.prompt_lengths)} in one batch, of {lengths} tokens"
        rows = [("prompts", prompts), ("steps", f"{self.steps}"), ("recorded runs", self.recorded)]
        answer, *parted = parity_sections(self.parity)
        ran = Text(f"bundle {self.root}"), Table("what was run", ("what", ""), rows)
        return Document("verify", (answer, *ran, *parted))


def verify_genai(
    root: Path, other: Model | None, progress: Progress, *, trust_code: bool = False
) -> GenaiVerification:
    """Compare the greedy tokens that genai generates with a reference's.

    The package in the bundle is compared with its recorded runs before. Prompts of several
    lengths run in one batch: genai pads on the right, the reference on the left.

    Args:
        other: The reference, called as the package is; None: the package on function bodies.

    Raises:
        PackageError: It is no bundle, or has changed.
        ConfigError: The reference is no form of its model, or native code is not trusted.
        ValidationError: The package is not equal to its recorded runs.
        BackendError: genai is not installed, does not open the bundle, or fails.
    """
    with progress.step("reading the bundle"):
        bundle.read_genai_bundle(root)
        require_own_code(root, trust_code=trust_code)
        package = OnnxPackage.open(root / bundle.PACKAGE_FOLDER)
        interface = bundle.check_decoder(package.manifest, str(root))
    prompts, steps = prompts_within(interface)
    check_prompts(prompts, interface, steps)
    called = interface if other is None else reference_interface(other, interface, str(root))
    check_prompts(prompts, called, steps)
    with progress.step("generating by genai"):
        found = list(genai_tokens(root, prompts, interface.padding, steps))
    with progress.step("comparing the package with what it recorded"):
        recorded = compare_recorded(package)
    if recorded.failure is not None:
        raise ValidationError(
            f"the package in {root} is {recorded.failure.message}", hint=recorded.failure.hint
        )
    reference = other or opened_package(package)
    name = reference.name if other is not None else "the package on function bodies"
    variant = Variant() if other is not None else Variant(kernels="off")
    with progress.step("generating by what it is compared with"), reference.open(variant) as runner:
        expected = Decoding(runner, called, prompts, steps).steps()
        comparison = TokenComparison(expected, package.manifest.precision)
        ended = [False] * len(prompts)
        for position, tokens in enumerate(found):
            shown = tuple(None if end else t for t, end in zip(tokens, ended, strict=True))
            comparison.add(DecodedStep(shown, _NO_LOGITS), position)
            ends = interface.about.eos_token_ids
            ended = [end or t in ends for t, end in zip(tokens, ended, strict=True)]
    check_all_steps(str(root), len(found), steps, ended)
    parity, lengths = comparison.parity(name), tuple(map(len, prompts))
    return GenaiVerification(root, lengths, steps, parity, recorded.answer)


_NO_LOGITS = np.zeros((0, 0), np.float32)  # genai's are not asked for: the reference's tell margins


def check_all_steps(name: str, found: int, steps: int, ended: Sequence[bool]) -> None:
    """Refuse texts that stop before they end: what is not generated would not be compared.

    Raises:
        ValidationError: Fewer steps than asked for were made, and a text has not ended.
    """
    if found < steps and not all(ended):
        raise ValidationError(
            f"{name}, run by genai, stops after {found} of {steps} tokens, and text"
            f" {list(ended).index(False) + 1} has not ended."
        )


def prompts_within(interface: TextInterface) -> tuple[Sequence[Sequence[int]], int]:
    """Return prompts of the model's tokens, and how many may follow, within what a bundle says is
    the length of its context."""
    about = interface.about
    most = bundle.context_length(interface) or sum((*PROMPT_LENGTHS, MOST_STEPS))
    steps = max(1, min(MOST_STEPS, most // 2))
    special = {interface.padding, *about.eos_token_ids}
    usual = [token for token in range(about.vocab_size) if token not in special]
    draws = np.random.default_rng(0)
    lengths = [max(1, min(length, most - steps)) for length in PROMPT_LENGTHS]
    return [draws.choice(usual, length).tolist() for length in lengths], steps
