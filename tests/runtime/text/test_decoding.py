"""Prompts go in padded on the left, steps behind them one by one, and every row ends by itself."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from moh_deploy.errors import BackendError, ConfigError, PackageError
from moh_deploy.package import TensorInfo, TextGeneration
from moh_deploy.runtime.base import Description, Runner
from moh_deploy.runtime.text.decoding import (
    Decoding,
    Sampling,
    check_prompts,
    choose_tokens,
    left_padded,
)
from moh_deploy.runtime.text.interface import TextInterface
from moh_deploy.system.npz import Array
from tests.handmade_package import without_layers

CACHE = TensorInfo("past_key_values.0.key", "float32", ("batch", 1, "past", 1))
ABOUT = TextGeneration(10, context_length=20, eos_token_ids=(9,))
INTERFACE = TextInterface(ABOUT, (CACHE,), ("present.0.key",))


class Counting(Runner):
    """The next token is the sum of all valid ones so far, modulo 10: its cache holds them."""

    inputs = ()
    outputs = ("logits", "present.0.key", "gates")

    def __init__(self) -> None:
        self.seen: list[dict[str, Array]] = []

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self.seen.append(dict(inputs))
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        assert mask.shape[1] == ids.shape[1] + inputs[CACHE.name].shape[2]
        new = ids[:, None, :, None].astype(np.float32)
        cache = np.concatenate((inputs[CACHE.name], new), axis=2)
        sums = (cache[:, 0, :, 0] * mask).sum(1).astype(int) % 10
        logits = np.zeros((*ids.shape, 10), np.float32)
        logits[np.arange(len(ids)), -1, sums] = 1
        gates = np.zeros((*ids.shape, 4))
        gates[..., :3] = 1
        gates[mask[:, -ids.shape[1] :] == 0] = 1  # of padding: not to be counted
        return {"logits": logits, "present.0.key": cache, "gates": gates}

    def describe(self) -> Description:
        raise NotImplementedError


def test_rows_go_on_as_each_would_alone_until_it_ends():
    prompts = [[1], [3, 6], [2, 2, 1]]
    decoding = Decoding(Counting(), INTERFACE, prompts, 4, gates=("gates",))
    steps = [step.tokens for step in decoding.steps()]
    # 1, 1 + 1, 2 + 2, 4 + 4; 3 + 6 ends at once; 5, 5 + 5, ...
    assert steps == [(1, 9, 5), (2, None, 0), (4, None, 0), (8, None, 0)]
    figures = decoding.figures
    assert (figures.prompt_tokens, figures.new_tokens, figures.steps) == (6, 9, 3)
    assert figures.open_heads / figures.all_heads == 0.75


class Pooled(Counting):
    """A layer attends from three learned queries, whatever the tokens are."""

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        gates = np.tile([[1.0, 0.0]], (len(inputs["input_ids"]), 3, 1))
        return {**super().run(inputs), "gates": gates}


def test_gates_of_other_rows_than_tokens_are_counted_whole():
    decoding = Decoding(Pooled(), INTERFACE, [[1], [3, 6]], 2, gates=("gates",))
    list(decoding.steps())
    assert (decoding.figures.open_heads, decoding.figures.all_heads) == (12, 24)


def test_run_ends_with_the_last_row():
    runner = Counting()
    assert len(list(Decoding(runner, INTERFACE, [[9], [3, 6]], 8).steps())) == 1
    assert len(runner.seen) == 1


class Reciting(Counting):
    """The first text ends at once, and would go on; the other never ends."""

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        results = super().run(inputs)
        results["logits"][:, -1] = np.eye(10)[[9 if len(self.seen) == 1 else 4, 5]]
        return results


def test_row_that_ended_stays_so():
    steps = Decoding(Reciting(), INTERFACE, [[1], [3, 6]], 3).steps()
    assert [step.tokens for step in steps] == [(9, 5), (None, 5), (None, 5)]


def test_row_that_ended_gets_padding():
    runner = Counting()
    list(Decoding(runner, INTERFACE, [[1], [3, 6]], 3).steps())
    assert runner.seen[1]["attention_mask"].tolist() == [[0, 1, 1], [1, 1, 0]]
    assert runner.seen[1]["input_ids"].shape == (2, 1)


def test_buffers_have_room_for_prompt_and_answer():
    assert INTERFACE.empty_caches(3, 9)["past_key_values.0.key"].shape[2] == 0
    buffers = replace(INTERFACE, in_place=True).empty_caches(3, 9)
    assert buffers["past_key_values.0.key"].shape[2] == 9


def test_prompts_are_padded_on_the_left():
    ids, mask = left_padded([[1, 2, 3], [4]], padding=0)
    assert ids.tolist() == [[1, 2, 3], [0, 0, 4]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]


@pytest.mark.parametrize("tokens", [17, 20, 25])
def test_prompt_beyond_the_position_table_is_refused(tokens: int):
    check_prompts([[1] * 16], INTERFACE, 4)
    with pytest.raises(ConfigError, match=f"{tokens} tokens, and 4 more .* takes 20 together"):
        check_prompts([[1], [1] * tokens], INTERFACE, 4)


def test_prompt_longer_than_what_is_taken_at_once_is_refused():
    shorter = replace(INTERFACE, longest_prompt=8)
    check_prompts([[1] * 8], shorter, 4)
    with pytest.raises(ConfigError, match="prompt 1 has 9 tokens; the package takes 8 at once"):
        check_prompts([[1] * 9], shorter, 4)


def test_package_of_something_else_generates_no_text():
    with pytest.raises(PackageError, match="here generates no text: it takes x"):
        TextInterface.of(without_layers(), "here")


class Overflowing(Counting):
    """One logit of the second text is another number."""

    def __init__(self, number: float) -> None:
        super().__init__()
        self.number = number

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        results = super().run(inputs)
        results["logits"][1, :, 5] = self.number
        return results


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_logits_that_are_not_finite_choose_nothing(number: float):
    with pytest.raises(BackendError, match="behind token 0 of text 2 are NaN or infinite"):
        list(Decoding(Overflowing(number), INTERFACE, [[1], [2]], 3).steps())
    list(Decoding(Overflowing(-np.inf), INTERFACE, [[1], [2]], 3).steps())


# Tokens are the likeliest, or drawn as their logits say.


LOGITS = np.log(np.array([0.5, 0.3, 0.15, 0.05]))


def drawn(sampling: Sampling, count: int = 4000) -> np.ndarray:
    chosen = choose_tokens(np.tile(LOGITS, (count, 1)), sampling, np.random.default_rng(1))
    return np.bincount(chosen, minlength=4) / count


def test_greedy_takes_the_first_of_the_largest():
    logits = np.array([[0.0, 2.0, 2.0], [5.0, 1.0, 2.0]])
    assert choose_tokens(logits, Sampling(), np.random.default_rng(0)).tolist() == [1, 0]


def test_draws_are_as_likely_as_the_logits_say():
    assert drawn(Sampling(temperature=1.0)) == pytest.approx(np.exp(LOGITS), abs=0.03)


def test_temperature_sharpens():
    sharp = np.exp(LOGITS * 2)
    assert drawn(Sampling(temperature=0.5)) == pytest.approx(sharp / sharp.sum(), abs=0.03)


@pytest.mark.parametrize(("top_p", "kept"), [(0.01, 1), (0.5, 1), (0.51, 2), (0.9, 3), (1.0, 4)])
def test_top_p_keeps_the_fewest_that_reach_it(top_p: float, kept: int):
    chances = np.exp(LOGITS)
    chances[kept:] = 0
    expected = chances / chances.sum()
    assert drawn(Sampling(temperature=1.0, top_p=top_p)) == pytest.approx(expected, abs=0.03)


def test_a_very_low_temperature_takes_the_likeliest():
    assert drawn(Sampling(temperature=1e-308), 8).tolist() == [1, 0, 0, 0]


def test_a_seed_that_no_generator_takes_is_refused():
    with pytest.raises(ConfigError, match="seed is -1, expected 0 or more"):
        Sampling(seed=-1)
