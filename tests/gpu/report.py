"""The JSON file of a stage: whole on the disk after every step, whatever happens next."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests.gpu.steps import Facts, Json, Result, finite


class Report:
    """What a stage has found out so far.

    A full disk loses nothing but the file: rows are printed, and written as soon as there is room.

    Attributes:
        problem: Why the file is not as it should be; empty if it is.
    """

    def __init__(self, path: Path, header: Facts) -> None:
        self.path = path
        self.problem = ""
        self.results: list[Result] = []
        self._header = header
        self._rows: list[str] = []
        self._write()

    def note(self, **facts: Json) -> None:
        """Set facts of the whole stage."""
        self._header |= facts
        self._write()

    def add(self, result: Result) -> None:
        """Print a step's result and write the file again."""
        row = json.dumps(result.row(), allow_nan=False)
        self.results.append(result)
        self._rows.append(row)
        if result.status != "passed" or result.facts:
            print(row, flush=True)
        self._write()

    def _write(self) -> None:
        header = json.dumps(finite(self._header), indent=1, allow_nan=False).removesuffix("\n}")
        rows = ",\n  ".join(self._rows)
        text = f'{header},\n "rows": [\n  {rows}\n ]\n}}\n'
        self.problem = write_whole(self.path, text.encode())


def write_whole(path: Path, content: bytes) -> str:
    """Replace a file at once, or leave it as it was and say why."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_bytes(content)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        return f"{path} could not be written: {error.strerror or error}"
    return ""
