"""Soft caps (Gemma 2) and sinks (GPT-OSS) stay operators; a sink as a key becomes an op."""

import re

import pytest
import torch
from torch import nn

from moh_deploy.frontend.load.model import ModelInput
from moh_deploy.frontend.recognize import recognize
from moh_deploy.frontend.rewrite import commit, insert
from moh_deploy.frontend.rewrite.masks import mask_trials
from tests.frontend.traced import traced
from tests.nightly import nightly

HEADS, KV_HEADS, HEAD_DIM, HIDDEN = 4, 2, 8, 24
WINDOW = 3


def repeat_kv(states, n_rep):
    b, heads, n, d = states.shape
    return states[:, :, None].expand(b, heads, n_rep, n, d).reshape(b, heads * n_rep, n, d)


class Attention(nn.Module):
    """A decoder's attention, as transformers has it, with two of four heads chosen for a token."""

    def __init__(self, attend, window):
        super().__init__()
        self.q_proj = nn.Linear(HIDDEN, HEADS * HEAD_DIM)
        self.k_proj = nn.Linear(HIDDEN, KV_HEADS * HEAD_DIM)
        self.v_proj = nn.Linear(HIDDEN, KV_HEADS * HEAD_DIM)
        self.o_proj = nn.Linear(HEADS * HEAD_DIM, HIDDEN)
        self.router = nn.Linear(HIDDEN, HEADS)
        self.sinks = nn.Parameter(torch.randn(HEADS) * 2)
        self.attend, self.window = attend, window

    def forward(self, hidden_states):
        shape = (*hidden_states.shape[:-1], -1, HEAD_DIM)
        query = self.q_proj(hidden_states).view(shape).transpose(1, 2)
        key = self.k_proj(hidden_states).view(shape).transpose(1, 2)
        value = self.v_proj(hidden_states).view(shape).transpose(1, 2)
        key, value = repeat_kv(key, HEADS // KV_HEADS), repeat_kv(value, HEADS // KV_HEADS)
        n = hidden_states.shape[1]
        ahead = torch.arange(n)[None] - torch.arange(n)[:, None]
        hidden = (ahead > 0) | (ahead <= -self.window) if self.window else ahead > 0
        attn_output = self.attend(query, key, value, hidden, self.sinks).transpose(1, 2)
        scores, chosen = self.router(hidden_states).topk(2, dim=-1)
        gates = torch.zeros_like(self.router(hidden_states))
        gates = gates.scatter(-1, chosen, scores.softmax(-1))
        attn_output = attn_output * gates.unsqueeze(-1)
        return self.o_proj(attn_output.reshape(*hidden_states.shape[:-1], -1))


def gemma2(query, key, value, hidden, sinks):
    attn_weights = torch.matmul(query, key.transpose(2, 3)) * HEAD_DIM**-0.5
    attn_weights = torch.tanh(attn_weights / 0.5) * 0.5
    attn_weights = attn_weights.masked_fill(hidden, -torch.inf)
    attn_weights = nn.functional.softmax(attn_weights, dim=-1, dtype=torch.float32).to(query.dtype)
    return torch.matmul(attn_weights, value)


def gpt_oss(query, key, value, hidden, sinks):
    attn_weights = torch.matmul(query, key.transpose(2, 3)) * HEAD_DIM**-0.5
    attn_weights = attn_weights.masked_fill(hidden, -torch.inf)
    sinks = sinks.reshape(1, -1, 1, 1).expand(query.shape[0], -1, query.shape[-2], -1)
    combined_logits = torch.cat([attn_weights, sinks], dim=-1)
    combined_logits = combined_logits - combined_logits.max(dim=-1, keepdim=True).values
    probs = nn.functional.softmax(combined_logits, dim=-1, dtype=combined_logits.dtype)
    return torch.matmul(probs[..., :-1], value)


def sink_as_a_key(query, key, value, hidden, sinks):
    """As the reason advises: a first key of zeros has the score 0, to which the sink is added."""
    key, value = (nn.functional.pad(states, (0, 0, 1, 0)) for states in (key, value))
    bias = nn.functional.pad(sinks.view(1, -1, 1, 1), (0, hidden.shape[1]))
    hidden = nn.functional.pad(hidden, (1, 0), value=False)
    attn_weights = torch.matmul(query, key.transpose(2, 3)) * HEAD_DIM**-0.5 + bias
    return torch.matmul(attn_weights.masked_fill(hidden, -torch.inf).softmax(-1), value)


def inputs(n, batch=2):
    return [ModelInput("hidden_states", torch.randn(batch, n, HIDDEN), {0: "batch", 1: "n"})]


def rewritten(attend, window):
    """Return the module, its layer's rewrite, and the program with the op where there is one."""
    torch.manual_seed(0)
    module = Attention(attend, window).eval()
    program = traced(module, inputs(6))
    (rewrite,) = insert(program, recognize(program), mask_trials(program, inputs(6)))
    return module, rewrite, commit(program, [rewrite]).module()


KEPT = {
    "soft_cap": (gemma2, r"tanh \(.*:\d+\) stands between the scores .* closed heads, too; .*norm"),
    "sink": (gpt_oss, r"cat \(.*:\d+\) joins the scores .* closed heads, too; a first key"),
}


@nightly
@pytest.mark.parametrize("window", [0, WINDOW], ids=["global", "sliding"])
@pytest.mark.parametrize("name", KEPT)
def test_caps_and_sinks_are_kept_and_say_what_to_do(name, window):
    attend, reason = KEPT[name]
    module, rewrite, kept = rewritten(attend, window)
    assert rewrite.replacement is None
    assert re.search(reason, rewrite.reason or "")
    assert_computes(kept, attend, module)


@nightly
@pytest.mark.parametrize("window", [0, WINDOW], ids=["global", "sliding"])
def test_sink_as_a_key_is_an_op_that_computes_what_the_sink_does(window):
    module, rewrite, with_op = rewritten(sink_as_a_key, window)
    assert rewrite.op == "MoHAttention"
    assert_computes(with_op, gpt_oss, module)


def assert_computes(program, attend, module):
    """It is the module with `attend` in float64, at other sizes than the example's."""
    original = Attention(attend, module.window).double()
    original.load_state_dict(module.state_dict())
    (given,) = inputs(9, batch=3)
    got, *_ = program(given.value)
    torch.testing.assert_close(got.double(), original(given.value.double()), rtol=0, atol=1e-6)
