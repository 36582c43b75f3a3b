"""Fill the templates of a bundle's files."""

from __future__ import annotations

import functools
import json


def filled(name: str, /, **values: object) -> str:
    """Return the text of a file, `kserve.yaml`, with the values in its template."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("moh_deploy.serving.triton"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    # Strings of JSON are strings of YAML and of protocol buffers, too.
    environment.filters["quoted"] = functools.partial(json.dumps, ensure_ascii=False)
    return environment.get_template(f"{name}.jinja").render(values)
