"""The page for Hugging Face models is tried as it is written."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.nightly import nightly

PAGE = Path(__file__).parents[2] / "docs" / "huggingface.md"
MODEL = """
from transformers import LlamaConfig
import torch, moh_llama
torch.manual_seed(0)
config = LlamaConfig(vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128)
model = moh_llama.ForExport(config)
for parameter in model.parameters():
    if parameter.ndim > 1:
        torch.nn.init.normal_(parameter, std=0.3)
model.save_pretrained("model")
"""


@nightly
def test_commands_of_the_page_give_a_package_of_gated_layers(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    text, _, _ = PAGE.read_text().partition("\n## Inputs\n")  # the steps, before all else
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        (tmp_path / re.match(r"# (\S+)", block)[1]).write_text(block)
    for command in ([sys.executable, "-c", MODEL], [sys.executable, "make_example.py"]):
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    lines = text.replace("\\\n", "").splitlines()
    commands = [line[2:] for line in lines if line.startswith("$ moh-deploy ")]
    assert len(commands) == 3
    for line in commands:
        words = shlex.split(line)
        ran = subprocess.run(
            [sys.executable, "-m", "moh_deploy", *words[1:]],
            cwd=tmp_path,
            check=False,
            capture_output=True,
            text=True,
        )
        assert ran.returncode == 0, ran.stderr
    assert "router top_k" in ran.stdout or "EQUAL" in ran.stdout
