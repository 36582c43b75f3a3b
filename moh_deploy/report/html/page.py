"""Show a document as one page that any browser can read and that needs nothing else."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING

from moh_deploy.report.document import About, Document
from moh_deploy.report.html.heat_map import page_map
from moh_deploy.report.html.latency_chart import page_chart
from moh_deploy.report.html.margin_chart import page_margins
from moh_deploy.report.html.tracks import page_table
from moh_deploy.report.html.trade_off_chart import page_trade_off
from moh_deploy.system.replaceable import FileKind

if TYPE_CHECKING:
    from jinja2 import Environment

# HTML has no form for control characters, UTF-8 none for halves of surrogate pairs.
_NOT_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


HTML_FILE = FileKind.beginning_with(
    "page of moh-deploy", rb"\s*<!DOCTYPE html>.*\(moh-deploy \w+\)</title>"
)


def page(document: Document, about: About) -> str:
    """Return the text of a file."""
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    template = _environment().get_template("page.html")
    # Jinja leaves an empty line for each of its own.
    text = template.render(document=document, about=about, made=made)
    return _NOT_TEXT.sub("?", re.sub(r"\n\s*\n+", "\n", text))


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("moh_deploy.report.html"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Templates lay out what they show by these filters, and know the types of blocks only.
    # `block|kind` names the macro of blocks.html that shows a block.
    environment.filters["kind"] = lambda block: type(block).__name__
    layouts = {
        "table": page_table,
        "map": page_map,
        "chart": page_chart,
        "margins": page_margins,
        "trade_off": page_trade_off,
    }
    environment.filters.update({f"page_{name}": layout for name, layout in layouts.items()})
    return environment
