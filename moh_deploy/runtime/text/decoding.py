"""Run a language model token by token: prompts at once, padded on the left, then one a step."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from moh_deploy.errors import BackendError, ConfigError
from moh_deploy.runtime.base import Runner
from moh_deploy.runtime.text.interface import TextInterface
from moh_deploy.system.npz import Array

# Choose the next token of each row by its logits: the largest, or by chance.


@dataclass(frozen=True)
class Sampling:
    """Settings of choosing the next token: the likeliest, or drawn."""

    temperature: float = 0.0  # logits are divided by it; 0 takes the largest
    # Only the likeliest tokens that together have this probability are drawn from.
    top_p: float = 1.0
    seed: int = 0  # of the draws

    def __post_init__(self) -> None:
        if self.temperature < 0 or not np.isfinite(self.temperature):
            raise ConfigError(f"temperature is {self.temperature:g}, expected 0 or more.")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is {self.top_p:g}, expected more than 0, and at most 1.")
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}, expected 0 or more.")

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0


def choose_tokens(logits: Array, sampling: Sampling, draws: np.random.Generator) -> Array:
    """Return a token for each row of logits [rows, vocab]."""
    if sampling.is_greedy:
        return np.asarray(np.argmax(logits, axis=-1))
    wide = np.asarray(logits, np.float64)
    with np.errstate(over="ignore"):  # of a very low temperature: all but the largest are -inf
        scaled = (wide - wide.max(axis=-1, keepdims=True)) / sampling.temperature
    chances = np.exp(scaled)
    chances /= chances.sum(axis=-1, keepdims=True)
    order = np.argsort(-chances, axis=-1, kind="stable")
    ranked = np.take_along_axis(chances, order, axis=-1)
    # The first token stays, however likely it is alone; one that crosses the line stays, too.
    before = ranked.cumsum(axis=-1) - ranked
    ranked[before >= sampling.top_p] = 0
    reached = ranked.cumsum(axis=-1)
    drawn = draws.random((len(ranked), 1)) * reached[:, -1:]
    places = (reached <= drawn).sum(axis=-1)
    # Rounding may draw the sum itself: then the last token that has a chance.
    last = (ranked > 0).sum(axis=-1) - 1
    chosen: Array = np.take_along_axis(order, np.minimum(places, last)[:, None], axis=-1)[:, 0]
    return chosen


@dataclass(frozen=True)
class DecodedStep:
    """The tokens that one step of decoding added, and their logits."""

    tokens: tuple[int | None, ...]  # the token of each row; None for a row that had ended before
    logits: Array  # what they were chosen by, [rows, vocab]


@dataclass
class DecodingFigures:
    """Counts and seconds of generating text: reports make tokens per second of them."""

    prompt_tokens: int = 0  # of all prompts, padding left out
    prompt_seconds: float = 0.0
    new_tokens: int = 0
    step_seconds: float = 0.0  # how long all steps behind the prompts took
    steps: int = 0
    open_heads: int = 0  # head and token pairs whose gate was not zero, padding left out
    all_heads: int = 0


@dataclass(frozen=True)
class Decoding:
    """A model and prompts, to be gone on with."""

    runner: Runner  # the model; it returns the gates, too, where their names are given
    interface: TextInterface
    prompts: Sequence[Sequence[int]]
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    gates: Sequence[str] = ()  # names of outputs that are gates, [batch, seq, heads]
    figures: DecodingFigures = field(default_factory=DecodingFigures)  # what was measured so far

    def steps(self) -> Iterator[DecodedStep]:
        """Run, and yield what each run adds.

        Raises:
            BackendError: The runtime failed, or logits are NaN or infinite.
            ConfigError: The model takes no prompt of such a length.
        """
        rows, ends = len(self.prompts), self.interface.about.eos_token_ids
        draws = np.random.default_rng(self.sampling.seed)
        padding = self.interface.padding
        ids, given = left_padded(self.prompts, padding)
        # Each step sees a longer part of one mask.
        masks = np.zeros((rows, ids.shape[1] + self.max_tokens), np.int64)
        masks[:, : ids.shape[1]] = given
        self.figures.prompt_tokens += int(given.sum())
        caches = self.interface.empty_caches(*masks.shape)
        run = self.runner.steps(caches, self.interface.following)
        going = [True] * rows  # rows without an end yet
        for step in range(self.max_tokens):
            mask = masks[:, : given.shape[1] + step]
            started = time.perf_counter()
            results = run({"input_ids": ids, "attention_mask": mask})
            seconds = time.perf_counter() - started
            self._count(step, seconds, results, mask[:, -ids.shape[1] :])
            logits = np.asarray(results["logits"][:, -1], np.float32)
            peaks = logits.max(axis=-1)  # some -inf are fine
            if not all(map(math.isfinite, peaks.tolist())):
                _require_finite(peaks, going, step)
            chosen = choose_tokens(logits, self.sampling, draws).tolist()
            self.figures.new_tokens += sum(going)
            yield DecodedStep(
                tuple(token if on else None for token, on in zip(chosen, going, strict=True)),
                logits,
            )
            going = [on and token not in ends for token, on in zip(chosen, going, strict=True)]
            if not any(going):
                return
            # A row that has ended gets padding, which no other row sees.
            added = [token if on else padding for token, on in zip(chosen, going, strict=True)]
            ids = np.array(added, np.int64)[:, None]
            masks[:, given.shape[1] + step] = going

    def _count(self, step: int, seconds: float, results: dict[str, Array], valid: Array) -> None:
        if step == 0:
            self.figures.prompt_seconds += seconds
        else:
            self.figures.step_seconds += seconds
            self.figures.steps += 1
        is_whole = bool(valid.all())  # no token is padding
        for name in self.gates:
            gates = results[name]
            # Some layers attend from other rows than tokens, such as learned queries.
            if not is_whole and gates.shape[:-1] == valid.shape:
                gates = gates[valid != 0]  # [tokens, heads]
            self.figures.open_heads += int(np.count_nonzero(gates))
            self.figures.all_heads += gates.size


def _require_finite(peaks: Array, going: Sequence[bool], step: int) -> None:
    """Refuse logits of a row without an end whose largest is NaN or infinite."""
    lost = np.asarray(going) & ~np.isfinite(peaks)
    if lost.any():
        row = int(np.flatnonzero(lost)[0])
        raise BackendError(
            f"the logits behind token {step} of text {row + 1} are NaN or infinite: there"
            " is nothing to choose by.",
            hint="`moh-deploy verify` tells whether the package equals the original.",
        )


def left_padded(prompts: Sequence[Sequence[int]], padding: int) -> tuple[Array, Array]:
    """Return prompts as one array [rows, tokens], and the mask that says what is no padding."""
    longest = max(map(len, prompts))
    ids = np.full((len(prompts), longest), padding, np.int64)
    mask = np.zeros((len(prompts), longest), np.int64)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = prompt
        mask[row, longest - len(prompt) :] = 1
    return ids, mask


def check_prompts(
    prompts: Sequence[Sequence[int]], interface: TextInterface, max_tokens: int
) -> None:
    """Check that a model can go on with prompts.

    Raises:
        ConfigError: One is empty, holds what is no token, or is too long with what is added.
    """
    about = interface.about
    for number, prompt in enumerate(prompts, start=1):
        if not prompt:
            raise ConfigError(f"prompt {number} has no tokens, expected one or more.")
        wrong = [token for token in prompt if not 0 <= token < about.vocab_size]
        if wrong:
            raise ConfigError(
                f"prompt {number} holds token {wrong[0]}; the model has tokens 0 to"
                f" {about.vocab_size - 1}."
            )
        longest, most = interface.longest_prompt, about.context_length
        if longest is not None and len(prompt) > longest:
            raise ConfigError(
                f"prompt {number} has {len(prompt)} tokens; the package takes {longest} at once.",
                hint="Shorten it.",
            )
        if most is not None and len(prompt) + max_tokens > most:
            raise ConfigError(
                f"prompt {number} has {len(prompt)} tokens, and {max_tokens} more are asked for;"
                f" the model takes {most} together.",
                hint=f"--max-tokens {most - len(prompt)} is the most behind it."
                if len(prompt) < most
                else "Shorten it.",
            )
