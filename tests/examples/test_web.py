"""The page of examples/web classifies in a real browser, and requests nothing from elsewhere."""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import sync_playwright

import moh_deploy
from tests.examples.digits_demo import DemoRun
from tests.kept_builds import ROOT
from tests.nightly import nightly
from tests.skips import BROWSERS, has_onnxruntime_web


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@nightly
def test_page_shows_the_classes_of_the_package(digits_demo: DemoRun, tmp_path: Path, address: str):
    if not has_onnxruntime_web():
        pytest.skip("no onnxruntime-web: npm install onnxruntime-web, and set NODE_PATH")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"there is no browser: none of {', '.join(BROWSERS)} is on PATH")
    images = digits_demo.work_dir / "held-out.npz"
    command = [sys.executable, ROOT / "examples/web/make_page.py", digits_demo.package, images]
    subprocess.run([*command, "--output", tmp_path], check=True)
    (tmp_path / "node_modules").symlink_to(os.environ["NODE_PATH"])
    said: list[str] = []
    with sync_playwright() as playwright:
        options = ["--disable-dev-shm-usage", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        browser = playwright.chromium.launch(executable_path=program, args=options)
        page = browser.new_page()
        page.on("console", lambda message: said.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        page.on("request", lambda request: said.append(request.url))
        page.goto(address)
        page.wait_for_function("!state.textContent.startsWith('Loading')", timeout=120_000)
        state, answers = page.inner_text("#state"), page.locator("li").all_inner_texts()
        browser.close()
    assert state.startswith("12 images, ONNX Runtime 1."), (state, said)
    assert [url for url in said if not url.startswith(address)] == []
    logits = moh_deploy.load(digits_demo.package)(np.load(images)["images"][:12])
    assert answers == [f"class {number}" for number in logits.argmax(1)]
