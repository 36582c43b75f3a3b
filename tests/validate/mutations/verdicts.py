"""What `verify` says to a package: refused or not, and which layers it names."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import moh_deploy
from moh_deploy.errors import MoHDeployError
from moh_deploy.package import LayerInfo


@dataclass(frozen=True)
class Verdict:
    """The answer, as the public report has it.

    Attributes:
        refused: The report is not equal, or there was an error of ours.
        message: Why.
        named: Paths of layers in the message.
        crashed: Any other exception: a bug of `verify`.
    """

    refused: bool
    message: str
    named: tuple[str, ...] = ()
    crashed: bool = False


def verdict_of(root: Path, layers: Sequence[LayerInfo], **options: object) -> Verdict:
    """Run `verify` on a package, and read its report."""
    try:
        report = moh_deploy.verify(root, **options)
    except MoHDeployError as error:
        return Verdict(True, f"{type(error).__name__}: {error}", named_in(str(error), layers))
    except Exception as error:  # what it is said to be
        return Verdict(True, f"{type(error).__name__}: {error}", crashed=True)
    if report.equal:
        return Verdict(False, "")
    message = str(report.failure)
    return Verdict(True, message, named_in(message, layers))


def named_in(message: str, layers: Sequence[LayerInfo]) -> tuple[str, ...]:
    """Return the paths of layers that a message names: in quotes, or where no word could be meant,
    such as `blocks.1.attn`."""
    return tuple(layer.path for layer in layers if re.search(_mention(layer.path), message))


def _mention(path: str) -> str:
    escaped = re.escape(path)
    word = rf"(?<![\w.'#]){escaped}(?![\w'#]|\.\w)"
    return f"'{escaped}'|{word}" if "." in path else f"'{escaped}'"
