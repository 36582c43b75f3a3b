"""The site is built strictly, and a browser shows it without requests to elsewhere."""

import functools
import importlib.util
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from tests.nightly import nightly
from tests.report.html.browsing import DESK, HEIGHT, PHONE, Scheme
from tests.report.html.conftest import browser

__all__ = ["browser"]
ROOT = Path(__file__).parents[1]

pytestmark = [
    nightly,
    pytest.mark.skipif(
        importlib.util.find_spec("mkdocs") is None, reason="MkDocs is not installed"
    ),
]


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site as `make docs` does."""
    folder = tmp_path_factory.mktemp("docs")
    shutil.copy(ROOT / "mkdocs.yml", folder)
    (folder / "moh_deploy").symlink_to(ROOT / "moh_deploy")
    for command in (
        [str(ROOT / "tools" / "site_pages.py"), "build/pages"],
        ["-m", "mkdocs", "build", "--strict", "--quiet"],
    ):
        made = subprocess.run(
            [sys.executable, *command], cwd=folder, capture_output=True, text=True
        )
        assert made.returncode == 0, made.stderr
    return folder / "build" / "site"


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """Serve the site on this machine."""
    handler = functools.partial(_Quiet, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def opened(
    browser: Browser, base: str, *, width: int = DESK, scheme: Scheme = "light"
) -> tuple[Page, list[str]]:
    """Return a new page, and the list of its console lines, errors and requests to elsewhere."""
    said: list[str] = []
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": HEIGHT})
    page = context.new_page()
    page.on("console", lambda message: said.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: said.append(f"error: {error}"))
    page.on("request", lambda request: said.extend(_elsewhere(request.url, base)))
    return page, said


def _elsewhere(url: str, base: str) -> list[str]:
    return [] if url.startswith((base, "data:", "blob:")) else [f"request: {url}"]


def addresses(site: Path) -> list[str]:
    """Return the pages; of decisions, which look alike, one in ten."""
    found = sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html"))
    return [path for path in found if not re.match(r"404|docs/adr/\d\d\d[1-9]", path)]


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_pages_fit_and_ask_for_nothing_elsewhere(
    browser: Browser, site: Path, address: str, width: int
):
    page, said = opened(browser, address, width=width)
    assert len(addresses(site)) > 70
    for path in addresses(site):
        page.goto(address + path)
        wider = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert (path, wider, said) == (path, 0, [])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_scheme_of_the_system_is_taken(browser: Browser, address: str, scheme: Scheme):
    page, said = opened(browser, address, scheme=scheme)
    page.goto(address)
    brightness = page.evaluate(
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]"
    )
    assert (brightness > 128) == (scheme == "light")
    assert said == []


def test_search_finds_a_page(browser: Browser, address: str):
    page, said = opened(browser, address)
    page.goto(address)
    page.locator("input[name=query]").fill("quantize")
    page.locator(".md-search-result__item").first.wait_for()
    assert "docs/precision.html" in page.locator(".md-search-result__list").inner_html()
    assert said == []


def test_pages_are_read_without_a_server(browser: Browser, site: Path):
    page, said = opened(browser, site.as_uri())
    page.goto((site / "index.html").as_uri())
    page.locator(".md-content a[href='docs/quickstart.html']").first.click()
    assert "Quickstart" in page.title()
    assert said == []


def test_request_to_elsewhere_would_be_seen(browser: Browser, site: Path, address: str):
    (site / "other.html").write_text("<img src='http://127.0.0.2:9/x.png'><script>a.b</script>")
    page, said = opened(browser, address)
    page.goto(f"{address}other.html")
    (site / "other.html").unlink()
    assert any(line.startswith("request: http://127.0.0.2") for line in said)
    assert any(line.startswith("error: ") for line in said)
