"""Compare the routing of live traffic with the reference that `profile` wrote."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from moh_deploy.errors import ConfigError
from moh_deploy.serving.drift.judge import LiveCounts, judge_window
from moh_deploy.serving.drift.live import windows_of_dump, windows_of_metrics
from moh_deploy.serving.drift.reference import read_reference
from moh_deploy.serving.drift.report import WatchReport
from moh_deploy.serving.settings import LARGEST_OPTION
from moh_deploy.system.progress import Progress, SilentProgress


def watch(
    source: str | Path,
    *,
    reference: Path | str,
    every: float = 60.0,
    windows: int = 1,
    progress: Progress | None = None,
) -> WatchReport:
    """Judge windows of live traffic. Look at `alarms`: whether one is not as in the reference.

    Args:
        source: A dump of a served model's window, which is cut into windows of the size that the
            reference was calibrated for; or the address of a server's metrics, which are looked at
            again and again.
        reference: What `profile` wrote.
        every: Seconds between two looks at metrics.
        windows: How often to look at metrics after the first time.
        progress: What to report steps to.

    Raises:
        ConfigError: The source or the reference cannot be read, or they are of different packages.
        BackendError: prometheus_client, which reads metrics, is not installed.
    """
    progress = progress or SilentProgress()
    if not 0 < every <= LARGEST_OPTION or windows < 1:
        raise ConfigError(
            f"every is {every:g} and windows {windows}, expected more than 0 seconds and"
            f" {LARGEST_OPTION:g} at most, and 1 window or more."
        )
    with progress.step("reading the reference"):
        known = read_reference(Path(reference))
    with progress.step(f"watching {source}"):
        if str(source).startswith(("http://", "https://")):
            url = str(source)
            found: Iterable[LiveCounts] = windows_of_metrics(
                url, known, every=every, windows=windows
            )
        else:
            found = windows_of_dump(Path(source), known)
        judged = tuple(judge_window(known, window) for window in found)
    return WatchReport(str(source), judged, known)
