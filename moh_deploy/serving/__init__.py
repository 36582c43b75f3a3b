"""What serves a package: answers in batches, and says what its routers do meanwhile.

`ServedModel` is the core, which knows no protocol: `moh-deploy serve` and Triton's Python backend
hand it batches.
"""

from moh_deploy.serving.batches import BatchAxis
from moh_deploy.serving.metrics import Family, Series
from moh_deploy.serving.served_model import Reply, ServedModel, open_served
from moh_deploy.serving.settings import ServingSettings
from moh_deploy.serving.source import Observer, ServedRun

__all__ = [
    "BatchAxis",
    "Family",
    "Observer",
    "Reply",
    "Series",
    "ServedModel",
    "ServedRun",
    "ServingSettings",
    "open_served",
]
