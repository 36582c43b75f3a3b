"""Print what the container image installs beside moh-deploy, for `make lock`: no PyTorch, which
only `export` and the original models need, and which would be most of the image."""

import tomllib
from pathlib import Path

EXTRAS = ("polygraphy", "serve")


def image_requirements() -> list[str]:
    """Return the requirements of pyproject.toml and of the image's extras, but PyTorch."""
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    project = tomllib.loads(text)["project"]
    extras = [project["optional-dependencies"][name] for name in EXTRAS]
    required = [
        requirement for group in (project["dependencies"], *extras) for requirement in group
    ]
    return [requirement for requirement in required if not requirement.startswith("torch>")]


if __name__ == "__main__":
    print("\n".join(image_requirements()))
