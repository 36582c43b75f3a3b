"""Compare on a Ray cluster of two local workers, one of which is killed: `FOLDER` has plan.yaml.

Runs in a network namespace of its own (tests/decision/test_spread.py): Ray listens everywhere.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import ray

import moh_deploy
from moh_deploy.system.bounded_json import to_json_text
from tests.api.test_compare import Meter, fresh


def main() -> None:
    folder = Path(sys.argv[1])
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        object_store_memory=100 * 2**20,
        logging_level="ERROR",
        _temp_dir=sys.argv[2],
    )
    killed: list[int] = []
    thread = threading.Thread(target=kill_a_worker, args=(killed,), daemon=True)
    thread.start()
    report = moh_deploy.compare(
        plan=folder / "plan.yaml",
        trust_code=True,
        ray="auto",
        keep_scores=folder / "spread",
        measure=Meter((1.0, 0.5)),
        measure_fresh=fresh,
    )
    ray.shutdown()
    (folder / "spread.json").write_text(to_json_text(report.to_json()))
    print(f"killed {len(killed)}")


def kill_a_worker(killed: list[int]) -> None:
    """Kill the first worker that is seen at a block."""
    while not killed:
        for process in Path("/proc").glob("[0-9]*"):
            if is_at_work(process):
                os.kill(int(process.name), signal.SIGKILL)
                killed.append(int(process.name))
                return
        time.sleep(0.005)


def is_at_work(process: Path) -> bool:
    try:
        return (process / "cmdline").read_bytes().startswith(b"ray::_scored")
    except OSError:
        return False


if __name__ == "__main__":
    main()
