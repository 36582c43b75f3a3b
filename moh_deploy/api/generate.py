"""Generate text with a package, to look at it by hand or to compare tokens as a gate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from moh_deploy.errors import BackendError, ConfigError
from moh_deploy.package import OnnxPackage, Runtime
from moh_deploy.runtime.base import Deployed, Model, Variant
from moh_deploy.runtime.kernel_use import Kernels
from moh_deploy.runtime.models import runtime_for
from moh_deploy.runtime.open_runner import opened_package
from moh_deploy.runtime.original import Original, OriginalModel
from moh_deploy.runtime.text.decoding import Decoding, Sampling, check_prompts
from moh_deploy.runtime.text.interface import TextInterface, reference_interface
from moh_deploy.runtime.text.tokenizer import TextStream, Tokenizer
from moh_deploy.system.progress import Progress, SilentProgress
from moh_deploy.validate.compare.generate_report import (
    GeneratedText,
    GenerateReport,
    TokenComparison,
)


def generate(
    package_dir: Path | str,
    *,
    prompts: Sequence[str] = (),
    tokens: Sequence[Sequence[int]] = (),
    max_tokens: int = 64,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    against: Path | str | Original | None = None,
    runtime: Runtime | None = None,
    kernels: Kernels = "auto",
    on_text: Callable[[int, str], None] | None = None,
    progress: Progress | None = None,
) -> GenerateReport:
    """Generate text behind prompts, all of them in one batch.

    Args:
        package_dir: A package that `export --task text-generation` made.
        prompts: Text, for which the package needs its tokenizer.
        tokens: Prompts as numbers instead.
        max_tokens: The most tokens that are added to each prompt.
        temperature: Logits are divided by it before a token is drawn; 0 takes the likeliest.
        top_p: Tokens are drawn among the likeliest that together have this probability.
        seed: Of the draws.
        against: Another package, or what `load_original` returns: it has to generate the same
            tokens, greedy.
        runtime: What runs the package; None: what it was tuned for, or else ONNX Runtime.
        kernels: What runs MoH nodes, see `Variant`.
        on_text: Is told the number of a prompt, from 0, and what was added to its text; without a
            tokenizer, the token's number.
        progress: What to report steps to.

    Returns:
        The texts, and what was measured. Its `failure` is the first token that is another one.

    Raises:
        ConfigError: A prompt is too long, or options contradict each other.
        PackageError: It is no package for that, or has no tokenizer.
        BackendError: The runtime failed, what the package was tuned for is not installed, or
            `tokenizers` is not.
    """
    progress = progress or SilentProgress()
    sampling = Sampling(temperature, top_p, seed)
    prompts = (prompts,) if isinstance(prompts, str) else prompts
    if bool(prompts) == bool(tokens):
        raise ConfigError(
            "prompts are given as text and as tokens." if prompts else "no prompt is given.",
            hint="Give --prompt TEXT, or --tokens 1,15,27; either may come several times.",
        )
    if max_tokens < 1:
        raise ConfigError(f"max_tokens is {max_tokens}, expected 1 or more.")
    if against is not None and not sampling.is_greedy:
        raise ConfigError(
            "against compares the likeliest tokens, and a temperature is given, too.",
            hint="Leave --temperature out.",
        )
    if sampling.is_greedy and (sampling.top_p != 1 or sampling.seed != 0):
        raise ConfigError(
            "top_p and seed are of draws, and at a temperature of 0 none is made.",
            hint="Give --temperature 1, or leave them out.",
        )
    with progress.step("reading the package"):
        package = OnnxPackage.open(package_dir)
        runs_in = runtime_for(runtime, package.manifest.runtime)
        if runs_in == "openvino":
            raise BackendError(
                "OpenVINO runs no language model: it takes no empty cache, and has no"
                " TensorScatter, which writes caches in place.",
                hint="--runtime onnxruntime runs it.",
            )
        interface = TextInterface.of(package.manifest, str(package.root))
        tokenizer = Tokenizer.of(package) if prompts else None
    asked = (
        [tokenizer.tokens_of(prompt) for prompt in prompts] if tokenizer else [*map(list, tokens)]
    )
    check_prompts(asked, interface, max_tokens)
    other: Model | None = None
    if isinstance(against, (str, Path)):
        other = opened_package(OnnxPackage.open(against))
    elif against is not None:
        other = OriginalModel.of(against, package.manifest)
    called = interface
    if other is not None:
        called = reference_interface(other, interface, str(package.root))
        check_prompts(asked, called, max_tokens)
    with ExitStack() as opened:
        with progress.step("loading the model"):
            variant = Variant(runtime=runs_in, kernels=kernels, sizes_change=True)
            with_gates = variant.returning(package.gate_names)
            runner = opened.enter_context(opened_package(package).open(with_gates))
        decoding = Decoding(
            runner, interface, asked, max_tokens, sampling, gates=package.gate_names
        )
        comparison = None
        if other is not None:
            with progress.step("loading what it is compared with"):
                preferred = other.preferred_runtime if isinstance(other, Deployed) else None
                as_tuned = Variant(runtime=runtime_for(None, preferred))
                reference = opened.enter_context(other.open(as_tuned))
            precision = package.manifest.precision
            steps = Decoding(reference, called, asked, max_tokens, sampling).steps()
            comparison = TokenComparison(steps, precision)
        texts = _texts(decoding, tokenizer, comparison, on_text or (lambda row, text: None))
        described = runner.describe()
    figures = decoding.figures
    return GenerateReport(
        package=package.root,
        texts=texts,
        prompt_tokens=figures.prompt_tokens,
        prompt_seconds=figures.prompt_seconds,
        new_tokens=figures.new_tokens,
        step_seconds=figures.step_seconds,
        steps=figures.steps,
        open_heads=figures.open_heads / figures.all_heads if figures.all_heads else None,
        layer_runs=described.layer_runs,
        kernels=described.kernels,
        parity=comparison.parity(other.name) if comparison and other else None,
    )


def _texts(
    decoding: Decoding,
    tokenizer: Tokenizer | None,
    comparison: TokenComparison | None,
    on_text: Callable[[int, str], None],
) -> tuple[GeneratedText, ...]:
    """Run to the end; tell each piece of text as it comes."""
    added: list[list[int]] = [[] for _ in decoding.prompts]
    streams = [TextStream(tokenizer, prompt) for prompt in decoding.prompts] if tokenizer else []
    ends = decoding.interface.about.eos_token_ids
    for position, step in enumerate(decoding.steps()):
        if comparison is not None:
            comparison.add(step, position)
        for row, token in enumerate(step.tokens):
            if token is None:
                continue
            added[row].append(token)
            if token not in ends:
                on_text(row, streams[row].add(token) if streams else f" {token}")
    return tuple(
        GeneratedText(
            prompt_tokens=len(prompt),
            tokens=tuple(new),
            text=None if tokenizer is None else tokenizer.text_behind(prompt, new),
            ended=bool(new) and new[-1] in ends,
        )
        for prompt, new in zip(decoding.prompts, added, strict=True)
    )
