"""Read and write the file of `--timing-cache`: what TensorRT measured on one machine and stack.

A line of JSON says which; TensorRT's own bytes follow.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from moh_deploy.errors import PackageError
from moh_deploy.system.bounded_file import open_regular
from moh_deploy.system.bounded_json import parse_json
from moh_deploy.system.staging import staged_file

_KIND = "moh-deploy timing cache"


@dataclass(frozen=True)
class TimingCache:
    """A file of measured times.

    Attributes:
        path: The file; it may not exist yet.
        stack: What the times have to be of: versions, GPU, driver, plugin library.
    """

    path: Path
    stack: dict[str, str | None]

    def read(self) -> bytes | None:
        """Return the times; None if the file holds none, or those of something else."""
        if self.why_ignored() is not None or not self.path.is_file():
            return None
        return self._content().partition(b"\n")[2]

    def why_ignored(self) -> str | None:
        """Return why what is there is neither used nor replaced; None if it is."""
        if not self.path.exists():
            return None
        # A file of somebody else is never overwritten, and times of another GPU would choose
        # tactics that are slow here.
        found = self._stack()
        if found is None:
            return "it is not a timing cache of moh-deploy"
        other = [key for key, value in self.stack.items() if found.get(key) != value]
        differences = [f"{key} {found.get(key)}, here {self.stack[key]}" for key in other]
        return f"it was measured with {'; '.join(differences)}" if differences else None

    def write(self, times: bytes) -> None:
        """Replace the file by one with these times.

        Raises:
            PackageError: The file cannot be written.
        """
        head = json.dumps({"kind": _KIND, "stack": self.stack}).encode()
        with staged_file(self.path) as file:
            file.write_bytes(head + b"\n" + times)

    def _content(self) -> bytes:
        with open_regular(self.path) as file:
            return file.read()

    def _stack(self) -> dict[str, object] | None:
        try:
            text = self._content().partition(b"\n")[0]
            head = cast("dict[str, Any]", parse_json(text, f"{self.path}", error=PackageError))
            return dict(head["stack"]) if head["kind"] == _KIND else None
        # Whatever the file holds may be anything: none of it may end a build.
        except (OSError, PackageError, ValueError, KeyError, TypeError):
            return None
