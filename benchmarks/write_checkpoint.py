"""Build a model with a factory and write its state dict: write_checkpoint.py FACTORY FILE DIR..."""

import sys
from pathlib import Path

import torch

from moh_deploy.frontend.load.checkpoint_file import build_module


def main(factory: str, file: str, *code_dirs: str) -> None:
    module = build_module(factory, {}, code_dirs=[Path(folder) for folder in code_dirs])
    torch.save(module.state_dict(), file)


if __name__ == "__main__":
    main(*sys.argv[1:])
