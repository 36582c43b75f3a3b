"""A model behind a server that speaks the v2 protocol, as an arm: what clients really wait for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from moh_deploy.package import Manifest, TensorInfo
from moh_deploy.runtime.base import AS_IT_IS, Description, Model, Runner, Variant
from moh_deploy.runtime.kernel_use import KernelUse
from moh_deploy.serving.drill.load import V2Client, host_and_port
from moh_deploy.system.npz import Array


@dataclass(frozen=True)
class ServerModel(Model):
    """A model on a server that runs already.

    Attributes:
        url: `http://HOST:PORT`.
        served_as: What the server calls the model.
        base: Says what it takes and returns.
    """

    url: str
    served_as: str
    base: Manifest

    @property
    def name(self) -> str:
        return f"model '{self.served_as}' at {self.url}"

    def open(self, variant: Variant = AS_IT_IS) -> ServerRunner:
        """Return a connection of one client.

        Raises:
            ConfigError: The URL is no `http://HOST:PORT`.
        """
        host, port = host_and_port(self.url)
        client = V2Client(host, port, self.served_as, self.base)
        outputs = tuple(info.name for info in self.base.outputs)
        return ServerRunner(self, client, self.base.inputs, outputs)

    def alone(self, variant: Variant) -> None:
        return None  # Loading happened there, before.


@dataclass(frozen=True)
class ServerRunner(Runner):
    """A connection to a server; the time of a run has the way there and back in it."""

    model: ServerModel
    client: V2Client
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[str, ...]

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return dict(self.client(inputs).outputs)

    def describe(self) -> Description:
        return Description(self.model.name, KernelUse(None, "the server does not tell", None))

    def close(self) -> None:
        self.client.close()
