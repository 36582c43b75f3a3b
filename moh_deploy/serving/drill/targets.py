"""The servers that a drill breaks: in this process, over HTTP, or one that runs already."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from typing_extensions import Self

from moh_deploy.runtime.base import Deployed
from moh_deploy.serving.drill.load import Asking, ServerAnswer
from moh_deploy.serving.served_model import ServedModel, open_served
from moh_deploy.serving.settings import ServingSettings
from moh_deploy.system.npz import Array


class Target(ABC):
    """A server that was started with a drill allowed.

    Attributes:
        control: Its control file.
        audit_log: What its guard appends transitions to.
    """

    control: Path
    audit_log: Path

    @property
    @abstractmethod
    def name(self) -> str:
        """What it is, in the words of a report."""

    @abstractmethod
    def connect(self) -> Asking:
        """Return a connection for one client."""

    def kill_worker(self) -> bool:
        """End the process that answers, as `kill -9` does; False if that cannot be done."""
        return False

    def close(self) -> None:  # noqa: B027  (who runs already goes on)
        """End the server."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class InProcess(Target):
    """The served model itself, asked by threads of this process.

    Args:
        model: What is served.
        settings: How; guard, drill, control file and audit log are set here.
        folder: Where control file and audit log are.
    """

    def __init__(self, model: Deployed, settings: ServingSettings, folder: Path) -> None:
        self.control, self.audit_log = folder / "control.json", folder / "audit.jsonl"
        self._served: ServedModel = open_served(model, drilled(settings, folder))

    @property
    def name(self) -> str:
        return "the served model in this process"

    def connect(self) -> Asking:
        def ask(inputs: Mapping[str, Array]) -> ServerAnswer:
            reply = self._served.answer(inputs)
            return ServerAnswer(reply.outputs, reply.rung)

        return ask

    def close(self) -> None:
        self._served.close()


def drilled(settings: ServingSettings, folder: Path) -> ServingSettings:
    """Return settings with a guard that a drill may break, by files in a folder."""
    return replace(
        settings,
        guard=True,
        drill=True,
        control=str(folder / "control.json"),
        audit_log=str(folder / "audit.jsonl"),
    )
