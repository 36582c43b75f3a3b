"""Ask the server on this machine for one answer: exit 0 if it gives one, 1 if not.

    python3 probe.py [PORT [METRICS_PORT]]     8000, the server's own, without

A bundle holds this script and a recorded request. Triton 2.51 does not start a model's process
again that was killed, and goes on to say that it is ready: only an answer tells. Another of several
instances may give it: with the port of the metrics the probe fails, too, if an instance has been
silent there for half a minute. It needs nothing but Python.
"""

import json
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

REQUEST_NAME = "probe.request"
SILENT_SECONDS = 30
_FOLDER = Path(__file__).resolve().parent
# Whatever proxies the environment names: none is asked for this machine.
_ask = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


def main(port: str = "8000", metrics_port: str | None = None) -> str | None:
    """Return why the server is not well; None if it is."""
    model = json.loads((_FOLDER / "bundle.json").read_bytes())["settings"]["name"]
    body = (_FOLDER / REQUEST_NAME).read_bytes()
    # The first line is the header of the request, and the tensors follow it.
    length = body.index(b"\n") + 1
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v2/models/{model}/infer",
        body,
        {"Inference-Header-Content-Length": str(length)},
    )
    try:
        with _ask(request, timeout=10) as answer:
            answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return f"{model} gave no answer: {error.read()[:500].decode(errors='replace')}"
    except OSError as error:
        return f"{model} gave no answer: {error}"
    return None if metrics_port is None else silent_instance(metrics_port, model)


def silent_instance(port: str, model: str) -> str | None:
    """Return which instance has been silent for long; None if all live."""
    try:
        with _ask(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
    except OSError as error:
        return f"the server shows no metrics: {error}"
    for line in lines:
        if line.startswith("moh_heartbeat_seconds{") and f'model="{model}"' in line:
            heartbeat = float(line.rpartition(" ")[2])
            # 0: it has ended in order.
            if 0 < heartbeat < time.time() - SILENT_SECONDS:
                return f"an instance of {model} is silent: {line}"
    return None


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
