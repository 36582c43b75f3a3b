"""Train the text model: `python examples/text/train_text.py --output model`, a model directory."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from corpus import END, VOCAB_SIZE, load_text, write_tokenizer
from modeling_moh_text import MoHTextForCausalLM
from safetensors.torch import save_file
from torch import Tensor

SEED = 7
STEPS = 400
LENGTH = 128  # bytes of each row
ROWS = 16
LEARNING_RATE = 4e-3
BALANCE_WEIGHT = 0.01

CONFIG: dict[str, object] = {
    "architectures": ["MoHTextForCausalLM"],
    "auto_map": {"AutoModelForCausalLM": "modeling_moh_text.MoHTextForCausalLM"},
    "model_type": "moh_text",
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "shared_heads": 2,
    "chosen_heads": 3,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "eos_token_id": END,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a small MoH decoder on Python's help.")
    parser.add_argument("--output", type=Path, required=True, help="model directory to write")
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    training, _ = load_text()
    write_directory(train(training, steps=options.steps), options.output)


def train(text: np.ndarray, *, steps: int) -> MoHTextForCausalLM:
    """Train a new model from a fixed seed; progress goes to stderr."""
    torch.set_num_threads(1)  # The same sums on any machine.
    torch.manual_seed(SEED)
    draws = np.random.default_rng(SEED)
    model = MoHTextForCausalLM(SimpleNamespace(**CONFIG)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    started = time.process_time()
    for step in range(1, steps + 1):
        rows = _rows(text, draws)
        logits = model(rows[:, :-1])[0]
        loss = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        torch.autograd.backward(loss + BALANCE_WEIGHT * model.balance())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps:
            seconds = time.process_time() - started
            print(
                f"step {step}/{steps}  loss {loss.item():.3f}  {seconds:.0f} s of CPU time",
                file=sys.stderr,
            )
    return model.eval()


def write_directory(model: MoHTextForCausalLM, directory: Path) -> None:
    """Write what a model directory holds: config, code, weights and tokenizer."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(CONFIG, indent=1) + "\n")
    code = Path(__file__).with_name("modeling_moh_text.py")
    shutil.copyfile(code, directory / code.name)
    save_file(model.state_dict(), directory / "model.safetensors")
    write_tokenizer(directory)


def _rows(text: np.ndarray, draws: np.random.Generator) -> Tensor:
    """Return parts of the text [ROWS, LENGTH + 1], drawn by chance."""
    starts = draws.integers(0, len(text) - LENGTH, ROWS)
    return torch.from_numpy(np.stack([text[start : start + LENGTH + 1] for start in starts]))


if __name__ == "__main__":
    main()
