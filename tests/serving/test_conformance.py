"""`serve` and Triton answer the same requests alike, except where docs/serve.md says so."""

import asyncio
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from moh_deploy.errors import BackendError
from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.open_runner import find_deployed, open_runner
from moh_deploy.serving.drill.targets import V2Client
from moh_deploy.serving.http.app import Endpoint, make_app
from moh_deploy.serving.http.protocol import HEADER_LENGTH, read_answer
from moh_deploy.serving.http.queue import BatchingQueue, HttpLimits
from moh_deploy.serving.served_model import open_served
from moh_deploy.serving.settings import ServingSettings
from moh_deploy.serving.triton.bundle import write_bundle
from moh_deploy.serving.triton.server import running_server
from moh_deploy.validate.compare.tolerances import tolerance_for
from tests.kept_builds import ROOT
from tests.nightly import nightly
from tests.serving.conformance import FORMS, MAX_BATCH, Case, Difference, Form, Subject, cases
from tests.serving.graphs import write_graph, write_scaled
from tests.serving.http.running import LONG_S, running
from tests.serving.triton.triton_environment import server_or_skip

LABELS, WORDS, PLACES = (
    np.random.default_rng(rows).standard_normal((rows, 3)).astype(np.float32)
    for rows in (5, 30, 12)
)
GRAPH = """
asked (float[batch, 3] x, int64[batch] label, int64[batch, seq] ids, bool[batch, seq] valid)
=> (float[batch, 3] output, float[batch] score)
<int64 zero = {0}, int64 one = {1}, int64[1] axis = {1}, int64[1] last = {2}, float none = {0}> {
  of_label = Gather (labels, label)
  of_ids = Gather (words, ids)
  sizes = Shape (ids)
  length = Gather (sizes, one)
  counted = Range (zero, length, one)
  of_place = Gather (places, counted)
  tokens = Add (of_ids, of_place)
  kept = Unsqueeze (valid, last)
  masked = Where (kept, tokens, none)
  summed = ReduceSum <keepdims = 0> (masked, axis)
  labelled = Add (x, of_label)
  output = Add (labelled, summed)
  score = ReduceSum <keepdims = 0> (output, axis)
}
"""


def write_asked(root: Path) -> Subject:
    """Write a package with an input of each kind: numbers, a label, tokens and their mask."""
    x, label = np.array([[0.5, 1, -2], [2, -3, 4]], np.float32), np.array([4, 1])
    ids, valid = np.arange(10).reshape(2, 5) * 3, np.arange(10).reshape(2, 5) % 5 < [[3], [5]]
    output = x + LABELS[label] + ((WORDS[ids] + PLACES[:5]) * valid[..., None]).sum(1)
    inputs = {"x": x, "label": label, "ids": ids, "valid": valid}
    outputs = {"output": output, "score": output.sum(1)}
    tables = {"labels": LABELS, "words": WORDS, "places": PLACES}
    package = write_graph(root, GRAPH, inputs, outputs, tables)
    return Subject(package.manifest.inputs, inputs, {"label": 5, "ids": 30}, {"seq": 12})


def request_of(case: Case, client: httpx.Client | httpx.AsyncClient) -> httpx.Request:
    """Return the request of a case to the server of a client."""
    draft = case.draft
    path, content = f"/v2/{draft.path}".rstrip("/"), draft.content()
    return client.build_request(draft.method, path, content=content, headers=draft.headers)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Subject]:
    root = tmp_path_factory.mktemp("asked") / "package"
    return root, write_asked(root)


@pytest.mark.parametrize("form", FORMS)
def test_serve_answers_with_the_recorded_status(asked: tuple[Path, Subject], form: Form):
    root, subject = asked
    served = open_served(find_deployed(root), ServingSettings("m", threads=1))
    queue = BatchingQueue(
        served.answer, None, instances=1, max_batch=MAX_BATCH, max_delay_s=0.0, max_waiting=100
    )
    app = make_app(Endpoint("m", "1", served, queue, HttpLimits(longest={"batch": MAX_BATCH})))

    async def wrong() -> list[str]:
        found = []
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
        ):
            for case in cases(subject, form):
                answer = await client.send(request_of(case, client))
                has_sentence = answer.status_code < 400 or len(answer.json()["error"]) > 10
                if answer.status_code != case.statuses[0] or not has_sentence:
                    found.append(f"{case.name}: {case.statuses[0]} expected, {_text(answer)}")
        return found

    assert asyncio.run(wrong()) == []
    queue.close()
    served.close()


def test_docs_list_every_difference(asked: tuple[Path, Subject]):
    found = {
        f"| {item.kind} | {item.serve} | {item.triton or 'may end'} |"
        for item in (case.expected for form in FORMS for case in cases(asked[1], form))
        if isinstance(item, Difference)
    }
    text = (ROOT / "docs" / "serve.md").read_text()
    table = text.partition("| request | `serve` | Triton |\n")[2].partition("\n\n")[0]
    assert set(table.splitlines()[1:]) == found


@nightly
def test_serve_and_triton_answer_alike(asked: tuple[Path, Subject], tmp_path: Path):
    server, (package, subject) = server_or_skip(), asked
    with open_runner(package, Variant(threads=1)) as runner:
        right = runner.run(subject.inputs)
    settings = ServingSettings("m", threads=1, max_batch=MAX_BATCH)
    write_bundle(find_deployed(package), tmp_path / "bundle", settings)
    with ExitStack() as stack:
        ours = stack.enter_context(
            running(package, tmp_path / "said", "--threads", "1", "--max-batch", str(MAX_BATCH))
        )
        triton = stack.enter_context(running_server(server, tmp_path / "bundle", tmp_path / "log"))
        serve, other = (
            stack.enter_context(httpx.Client(base_url=url, timeout=LONG_S))
            for url in (ours.url, f"http://127.0.0.1:{triton.ports.http}")
        )
        for port in (ours.port, triton.ports.http):
            with closing(
                V2Client("127.0.0.1", port, "m", OnnxPackage.open(package).manifest)
            ) as ask:
                got = ask(subject.inputs).outputs
            for name, expected in right.items():
                np.testing.assert_allclose(got[name], expected, rtol=1e-4, atol=1e-5, strict=True)
        every = [case for form in FORMS for case in cases(subject, form)]
        asked_of_both = [case for case in every if case.statuses[1] is not None]
        found = [
            f"{case.name}: {item}" for case in asked_of_both for item in unlike(case, serve, other)
        ]
    print(f"{len(asked_of_both)} requests, {len(found)} answered otherwise than recorded")
    assert len(asked_of_both) > 200
    assert found == []


@nightly
def test_number_of_a_model_that_joins_no_requests_has_an_axis_in_triton(tmp_path: Path):
    server, package = server_or_skip(), write_scaled(tmp_path / "package")
    write_bundle(find_deployed(package.root), tmp_path / "bundle", ServingSettings("m"))
    inputs, recorded = package.vectors[0].inputs, package.vectors[0].outputs
    with (
        running(package.root, tmp_path / "said") as ours,
        running_server(server, tmp_path / "bundle", tmp_path / "log") as triton,
    ):
        for port in (ours.port, triton.ports.http):
            with closing(V2Client("127.0.0.1", port, "m", package.manifest)) as ask:
                got = ask(inputs).outputs
                with pytest.raises(BackendError, match="status 400"):
                    ask({**inputs, "scale": np.ones(2, np.float32)})
            for name, expected in recorded.items():
                np.testing.assert_array_equal(got[name], expected, strict=True)


def unlike(case: Case, *servers: httpx.Client) -> Iterator[str]:
    """Yield in what the answers of `serve` and Triton differ, beside what is recorded."""
    ours, theirs = (server.send(request_of(case, server)) for server in servers)
    if (ours.status_code, theirs.status_code) != case.statuses:
        yield f"{case.statuses} expected; serve: {_text(ours)}; Triton: {_text(theirs)}"
        return
    if case.draft.path == "models/m":
        if (got := _tensors(ours)) != (other := _tensors(theirs)):
            yield f"serve has {got}, Triton {other}"
        return
    if ours.status_code != 200 or theirs.status_code != 200 or case.draft.method != "POST":
        return
    (head, outputs), (their_head, their_outputs) = map(_read, (ours, theirs))
    # Triton's backend is not told in which order a client wants them.
    if (head, sorted(outputs)) != (their_head, sorted(their_outputs)):
        yield f"serve: {head}, {sorted(outputs)}; Triton: {their_head}, {sorted(their_outputs)}"
        return
    for name, got in outputs.items():
        other = their_outputs[name]
        if (got.dtype, _in_triton(got.shape)) != (other.dtype, other.shape):
            yield f"serve: {got.dtype}{got.shape}; Triton: {other.dtype}{other.shape}"
            continue
        limit = tolerance_for(got.dtype.name).limit(float(np.abs(other).max()))
        worst = float(np.abs(got - other.reshape(got.shape)).max())
        if worst > limit:
            yield f"'{name}' differs by {worst}, allowed is {limit}"


def _read(answer: httpx.Response) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what stands in an answer beside its outputs, and these."""
    length = answer.headers.get(HEADER_LENGTH)
    outputs = read_answer(answer.content, length)
    head = json.loads(answer.content[: None if length is None else int(length)])
    return {key: head.get(key) for key in ("model_name", "model_version", "id")}, outputs


def _tensors(metadata: httpx.Response) -> list[tuple[str, str, tuple[int, ...]]]:
    """Return names, datatypes and shapes in a model's metadata, as Triton has them."""
    found = metadata.json()
    return [
        (info["name"], info["datatype"], _in_triton(info["shape"]))
        for info in (*found["inputs"], *found["outputs"])
    ]


def _in_triton(shape: Sequence[int]) -> tuple[int, ...]:
    """Return a shape as Triton has it: [batch] is [batch, 1] there."""
    return (*shape, 1) if len(shape) == 1 else tuple(shape)


def _text(answer: httpx.Response) -> str:
    return f"{answer.status_code} {answer.content[:150].decode(errors='replace')}"
