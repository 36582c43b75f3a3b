"""Open a page as a reader does, and see what the browser does with it."""

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Page

Scheme = Literal["light", "dark"]

PHONE, DESK = 390, 1280
HEIGHT = 844


@dataclass
class Visits:
    """Pages in one browser. Each is opened once, and kept.

    Attributes:
        browser: The browser.
        folder: Where pages are written.
        said: What a page wrote on the console, what went wrong, and what it asked for, by its text.
    """

    browser: Browser
    folder: Path
    said: dict[str, list[str]] = field(default_factory=dict)
    contexts: dict[Scheme, BrowserContext] = field(default_factory=dict)
    pages: dict[tuple[str, Scheme], Page] = field(default_factory=dict)

    def __call__(self, text: str, *, width: int = DESK, scheme: Scheme = "light") -> Page:
        """Open a page."""
        if (text, scheme) not in self.pages:
            self.pages[text, scheme] = self._opened(text, scheme)
        page = self.pages[text, scheme]
        page.set_viewport_size({"width": width, "height": HEIGHT})
        return page

    def _opened(self, text: str, scheme: Scheme) -> Page:
        if scheme not in self.contexts:
            self.contexts[scheme] = self.browser.new_context(color_scheme=scheme)
        file = self.folder / f"{len(self.pages)}.html"
        file.write_text(text, encoding="utf-8")
        page, said = self.contexts[scheme].new_page(), self.said.setdefault(text, [])
        page.on("console", lambda message: said.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        page.on("dialog", lambda dialog: said.append(f"dialog: {dialog.message}"))
        page.on("request", lambda request: said.extend(_elsewhere(request.url, file)))
        page.goto(file.as_uri())
        return page


def _elsewhere(url: str, file: Path) -> list[str]:
    """Return what is said of a request that leaves the page."""
    is_here = url == file.as_uri() or url.startswith("data:")
    return [] if is_here else [f"request: {url}"]


def pixels(page: Page, selector: str) -> NDArray[np.float64]:
    """Return a screenshot of the first such element, [height, width, RGB] of 0 to 1."""
    page.bring_to_front()  # Of others nothing is drawn, for seconds.
    picture = page.locator(selector).first.screenshot(animations="disabled")
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    return np.asarray(image, np.float64) / 255


def near(image: NDArray[np.float64], colour: tuple[float, float, float]) -> float:
    """Return the share of pixels of about this colour."""
    distance = np.abs(image - np.asarray(colour)).max(axis=-1)
    return float((distance < 0.04).mean())


def colour_of(page: Page, name: str) -> tuple[float, float, float]:
    """Return a colour of the style sheet by its name there, RGB of 0 to 1."""
    code = f"getComputedStyle(document.documentElement).getPropertyValue('--{name}').trim()"
    digits = page.evaluate(code).removeprefix("#")
    red, green, blue = (int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4))
    return red, green, blue


def luminance(colour: tuple[float, float, float]) -> float:
    """Return how bright a colour looks, 0 to 1; source: WCAG 2.2, relative luminance."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def pale_texts(page: Page) -> list[Any]:
    """Return all texts that are less than 4.5 to 1 from what is behind them."""
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    return list(page.evaluate(_PALE_TEXTS))


_PALE_TEXTS = """() => {
  const parse = text => {
    const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number);
    return {rgb: [r, g, b], a};
  };
  const luminance = rgb => {
    const linear = c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = rgb.map(c => linear(c / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = element => {
    for (; element; element = element.parentElement) {
      const found = parse(getComputedStyle(element).backgroundColor);
      if (found.a === 1) return found.rgb;
      if (found.a > 0) throw new Error('a background that shines through');
    }
    throw new Error('nothing is behind the text');
  };
  const pale = [];
  let seen = 0;
  for (const element of document.body.querySelectorAll('*')) {
    const own = [...element.childNodes].filter(node => node.nodeType === 3);
    const text = own.map(node => node.data).join('').trim();
    const isShown = element.getBoundingClientRect().width > 0;
    if (!text || !isShown || ['title', 'desc'].includes(element.tagName)) continue;
    seen += 1;
    const style = getComputedStyle(element);
    const isDrawn = element instanceof SVGElement;
    const front = luminance(parse(isDrawn ? style.fill : style.color).rgb);
    const back = luminance(behind(element));
    const contrast = (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
    if (contrast < 4.5) pale.push([text, contrast]);
  }
  if (seen < 5) throw new Error(`only ${seen} texts were seen`);
  return pale;
}"""
