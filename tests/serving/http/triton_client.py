"""Asks a server as Triton's own client does; runs in the environment of that client.

    python triton_client.py ADDRESS IN.npz OUT.npz

Each of the file's `x0`, `x1`, ... is one request. All are sent at the same time, once with raw
tensors and once as JSON; the answers are written as `raw0`, `json0`, ...; what the server says of
itself goes to stdout, as JSON.
"""

import json
import sys

import numpy as np
import tritonclient.http as http
from tritonclient.utils import InferenceServerException

address, asked, answered = sys.argv[1:]
client = http.InferenceServerClient(address, concurrency=8)
inputs = dict(np.load(asked))
waiting = {}
for name, x in inputs.items():
    for form in ("raw", "json"):
        tensor = http.InferInput("x", x.shape, "FP32")
        tensor.set_data_from_numpy(x, binary_data=form == "raw")
        output = http.InferRequestedOutput("y", binary_data=form == "raw")
        waiting[form + name[1:]] = client.async_infer(
            "m", [tensor], outputs=[output], request_id=name
        )
answers = {name: value.get_result() for name, value in waiting.items()}
np.savez(answered, **{name: value.as_numpy("y") for name, value in answers.items()})


def refusal(**options: object) -> list[str]:
    try:
        client.infer(**{"model_name": "m", "inputs": [tensor], **options})
    except InferenceServerException as error:
        return [error.status(), error.message()]
    return []


about = {
    "live": client.is_server_live(),
    "ready": client.is_server_ready(),
    "model ready": client.is_model_ready("m"),
    "server": client.get_server_metadata(),
    "model": client.get_model_metadata("m"),
    "ids": sorted({answer.get_response()["id"] for answer in answers.values()}),
    "refused": {
        "name": refusal(model_name="n"),
        "version": refusal(model_version="2"),
        "compression": refusal(request_compression_algorithm="gzip"),
    },
}
print(json.dumps(about))
client.close()
