"""The settings of a served model: the options of `serve`, and of a bundle."""

from dataclasses import dataclass

from moh_deploy.config.dtypes import Runtime
from moh_deploy.config.strict_json import Strict
from moh_deploy.errors import ConfigError

# Of a server's numbers: clocks and configurations overflow at larger ones.
LARGEST_OPTION = 1e9


@dataclass(frozen=True)
class ServingSettings(Strict):
    """Settings of a serving process. Paths are relative to the directory that they came from."""

    name: str  # what clients call the model
    version: str = "1"  # its version, as clients and metrics have it
    instances: int = 1  # how many batches run at the same time
    # Threads of each instance; None for the cores of the machine by the instances.
    threads: int | None = None
    max_batch: int = 64  # the most samples in one batch
    # How long the first request of a batch waits for others, in milliseconds.
    max_delay_ms: float = 1.0
    sample_every: int = 128  # routing is read of one batch in so many; 0 reads none
    per_head: bool = False  # count head by head, not by layer alone
    guard: bool = False  # answers are judged, and a fallback answers where the first fails
    # YAML file of the fallback chain and its limits; None: kernels, then function bodies.
    policy: str | None = None
    audit_log: str | None = None  # file that the guard's transitions are appended to; None for none
    # Control file of the guard: manual switch, alarms of drift; None for none.
    control: str | None = None
    drill: bool = False  # faults that the control file names are planted
    shadow: str | None = None  # package that is run beside, and compared; None for none
    shadow_share: float = 0.05  # on which share of the batches
    # Routing profile that live routing is compared with; None for none.
    reference: str | None = None
    runtime: Runtime | None = None  # what runs a package; None for what it was tuned for
    library: str | None = None  # the kernels to run on; None for the installation's
    # The collector that metrics are sent to, as `http://collector:4318`; None for none.
    otlp: str | None = None


def check_numbers(*options: tuple[str, float | None, float]) -> None:
    """Refuse numbers out of their range.

    Args:
        options: The name of each as the user knows it, its number, and the least that it may be.

    Raises:
        ConfigError: One is less than that, or larger than any may be.
    """
    for option, number, least in options:
        if number is not None and not least <= number <= LARGEST_OPTION:
            expected = f"{least:g} or more" if number < least else f"{LARGEST_OPTION:g} at most"
            raise ConfigError(f"{option} is {number:g}, expected {expected}.")
