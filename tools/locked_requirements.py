"""Print requirements of pyproject.toml for the locks of `make lock`.

python tools/locked_requirements.py polygraphy serve  its own and those of extras

PyTorch is left out: its build is that of a machine (CPU, CUDA), and no image installs it.
"""

import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

LEFT_OUT = "torch"


def locked_requirements(*extras: str) -> list[str]:
    """Return the requirements of the package and of extras, with the extras that these name."""
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    project = tomllib.loads(text)["project"]
    found = dict.fromkeys(project["dependencies"])
    waiting = list(extras)
    while waiting:
        for line in project["optional-dependencies"][waiting.pop(0)]:
            requirement = Requirement(line)
            if requirement.name == project["name"]:
                waiting += sorted(requirement.extras)
            elif requirement.name != LEFT_OUT:
                found[line] = None
    return list(found)


if __name__ == "__main__":
    print("\n".join(locked_requirements(*sys.argv[1:])))
