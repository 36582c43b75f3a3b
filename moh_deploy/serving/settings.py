"""How a model is served: what `serve` is told, and what a bundle carries."""

from __future__ import annotations

from dataclasses import dataclass

from moh_deploy.config.strict_json import Strict

LARGEST_OPTION = 1e9
"""Of a server's numbers: clocks and configurations overflow at larger ones."""


@dataclass(frozen=True)
class ServingSettings(Strict):
    """Settings of a serving process. Paths are relative to the directory that they came from.

    Attributes:
        name: What clients call the model.
        version: Its version, as clients and metrics have it.
        instances: How many batches run at the same time.
        threads: Threads of each instance; None for the cores of the machine by the instances.
        max_batch: The most samples in one batch.
        max_delay_ms: How long the first request of a batch waits for others, in milliseconds.
        sample_every: Routing is read of one batch in so many; 0 reads none.
        per_head: Count head by head, not by layer alone.
        guard: Answers are judged, and a rung below answers where the first fails.
        policy: YAML file of the ladder and its limits; None for kernels, then function bodies.
        audit_log: File that the guard's transitions are appended to; None for none.
        control: Control file of the guard: manual switch, alarms of drift; None for none.
        drill: Faults that the control file names are planted.
        shadow: Package that is run beside, and compared; None for none.
        shadow_share: On which share of the batches.
        reference: Routing profile that live routing is compared with; None for none.
        library: The kernels to run on; None for the installation's.
        otlp: The collector that metrics are sent to, as `http://collector:4318`; None for none.
    """

    name: str
    version: str = "1"
    instances: int = 1
    threads: int | None = None
    max_batch: int = 64
    max_delay_ms: float = 1.0
    sample_every: int = 128
    per_head: bool = False
    guard: bool = False
    policy: str | None = None
    audit_log: str | None = None
    control: str | None = None
    drill: bool = False
    shadow: str | None = None
    shadow_share: float = 0.05
    reference: str | None = None
    library: str | None = None
    otlp: str | None = None
