"""Make the script that asks a server for one answer: the liveness probe of a bundle.

Triton 2.51 does not start a model's process again that was killed, and goes on to say that it is
ready: only an answer tells. Of several instances another may give it, so each is looked for among
the metrics, too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from moh_deploy.package import TensorInfo
from moh_deploy.serving.triton.bundle_json import REPOSITORY, WARMUP
from moh_deploy.serving.triton.config_pbtxt import Warmup, triton_type

PROBE_NAME = "probe.py"


def probe_text(
    model: str, inputs: Sequence[TensorInfo], warmup: Warmup, *, batch: int | None
) -> str:
    """Return the script; it needs nothing but Python.

    Args:
        model: Name of the model.
        inputs: Of the model.
        warmup: The recorded sample that it sends, which lies beside the model.
        batch: How many times, where the server joins requests; None where it does not.
    """
    types = {one.name: triton_type(one).removeprefix("TYPE_") for one in inputs}
    tensors = [
        {
            "name": name,
            "datatype": types[name],
            "shape": [*([] if batch is None else [batch]), *(warmup.shapes[name] or (1,))],
            "file": f"{REPOSITORY}/{model}/{WARMUP}/{file}",
        }
        for name, file in warmup.files.items()
    ]
    # JSON without true, false and null is Python, too.
    return _SCRIPT.format(model=model, tensors=json.dumps(tensors, indent=4), samples=batch or 1)


_SCRIPT = '''\
"""Ask the server on this machine for one answer: exit 0 if it gives one, 1 if not.

    python3 probe.py [PORT [METRICS_PORT]]     8000, the server's own, without

With the port of the metrics it is 1, too, if an instance has said nothing there for half a minute.
"""

import json
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

MODEL = "{model}"
TENSORS = {tensors}
SAMPLES = {samples}
SILENT_SECONDS = 30
# Whatever proxies the environment names: none is asked for this machine.
ask = urllib.request.build_opener(urllib.request.ProxyHandler({{}})).open


def main(port="8000", metrics_port=None):
    tensors, data = [], b""
    for one in TENSORS:
        content = SAMPLES * Path(__file__).resolve().parent.joinpath(one["file"]).read_bytes()
        about = {{key: one[key] for key in ("name", "datatype", "shape")}}
        tensors.append({{**about, "parameters": {{"binary_data_size": len(content)}}}})
        data += content
    asked = {{"inputs": tensors, "parameters": {{"binary_data_output": True}}}}
    header = json.dumps(asked).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{{port}}/v2/models/{{MODEL}}/infer",
        header + data,
        {{"Inference-Header-Content-Length": str(len(header))}},
    )
    try:
        with ask(request, timeout=10) as answer:
            answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return f"{{MODEL}} gave no answer: {{error.read()[:500].decode(errors='replace')}}"
    except OSError as error:
        return f"{{MODEL}} gave no answer: {{error}}"
    return 0 if metrics_port is None else silent(metrics_port)


def silent(port):
    try:
        with ask(f"http://127.0.0.1:{{port}}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
    except OSError as error:
        return f"the server shows no metrics: {{error}}"
    for line in lines:
        if line.startswith("moh_heartbeat_seconds{{") and f'model="{{MODEL}}"' in line:
            said = float(line.rpartition(" ")[2])
            # 0: it has ended in order.
            if 0 < said < time.time() - SILENT_SECONDS:
                return f"an instance of {{MODEL}} says nothing any more: {{line}}"
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
'''
