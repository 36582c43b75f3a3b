"""Compare on a Ray cluster of two nodes, which see different files if they are to.

`FOLDER` has plan.yaml, `PLACE` takes Ray's own files, and the second node sees all of `FOLDER`,
or none of it (`hidden`), or not this package (`bare`). Runs in network, mount and process
namespaces of its own (tests/decision/test_spread.py), so that nothing is left of it.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import moh_deploy
from moh_deploy.errors import MoHDeployError
from moh_deploy.system.bounded_json import to_json_text
from tests.api.test_compare import Meter, fresh

HEAD, SECOND, PORT = "127.0.0.1", "127.0.0.2", 6391
COMMON = ["--num-cpus=1", f"--object-store-memory={100 * 2**20}", "--disable-usage-stats"]


def main() -> None:
    folder, place, second = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    node(HEAD, place, "--head", f"--port={PORT}", "--include-dashboard=false")
    hidden = {"hidden": folder, "bare": Path(moh_deploy.__file__).parent}.get(second)
    node(SECOND, place, f"--address={HEAD}:{PORT}", hides=hidden)
    raylets = {pid for pid in processes() if name_of(pid) == "raylet"}
    seen: set[int] = set()
    killed: list[int] = []
    watch = threading.Thread(target=watch_workers, args=(seen, killed), daemon=True)
    watch.start()
    try:
        report = moh_deploy.compare(
            plan=folder / "plan.yaml",
            trust_code=True,
            ray=f"{HEAD}:{PORT}",
            keep_scores=folder / "spread",
            measure=Meter((1.0, 0.5)),
            measure_fresh=fresh,
        )
    except MoHDeployError as error:
        print(f"refused: {error.message}")
        return
    (folder / "spread.json").write_text(to_json_text(report.to_json()))
    print(f"killed {len(killed)}, worked on {len(seen & raylets)} nodes")


def node(address: str, place: Path, *options: str, hides: Path | None = None) -> None:
    """Start a node in a working directory of its own, `hides` not among what it can see."""
    own = place / f"node-{address}"
    own.mkdir(parents=True)
    ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *COMMON]
    ray += [f"--node-ip-address={address}", *options]
    ray += [f"--temp-dir={place}"] if "--head" in options else []
    command = ray
    if hides is not None:
        hidden = f"mount -t tmpfs none '{hides}' && exec \"$@\""
        command = ["unshare", "--mount", "sh", "-c", hidden, "sh", *ray]
    # Ray gives a node half a minute, which a busy machine may take longer for.
    for attempt in range(8):
        path = place / f"node-{address}-{attempt}.log"
        with path.open("w") as log:
            started = subprocess.Popen(command, cwd=own, stdout=log, stderr=log)
        while started.poll() is None:
            if "Ray runtime started" in path.read_text():
                return
            time.sleep(0.2)
    raise RuntimeError(path.read_text()[-2000:])


def watch_workers(seen: set[int], killed: list[int]) -> None:
    """Note the nodes of workers that are at a block, and kill the first of the second node."""
    while True:
        for pid in processes():
            if is_at_work(Path("/proc") / str(pid)):
                parent = parent_of(pid)
                # Which node is second does not matter: one of each.
                if seen and parent not in seen and not killed:
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
                seen.add(parent)
        time.sleep(0.005)


def is_at_work(process: Path) -> bool:
    try:
        return (process / "cmdline").read_bytes().startswith(b"ray::_scored")
    except OSError:
        return False


def processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def parent_of(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return int(next(line for line in status.splitlines() if line.startswith("PPid:")).split()[1])


if __name__ == "__main__":
    main()
