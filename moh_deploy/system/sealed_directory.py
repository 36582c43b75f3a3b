"""Directories whose JSON file, the seal, lists the sha256 of their other files.

Packages, engine directories and bundles are sealed. Opening one compares the digests.
"""

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from moh_deploy.errors import PackageError
from moh_deploy.system.bounded_file import open_regular, sha256_of
from moh_deploy.system.staging import sync_file


@dataclass(frozen=True)
class SealedDirectory:
    """One such directory, while it is written or read."""

    root: Path  # the directory
    seal: str  # name of the JSON file
    made: str  # when its files were as listed, for errors: `the package was written`

    def digests(self) -> dict[str, str]:
        """Return the sha256 of every file but the seal, by its path with slashes."""
        files = {path.relative_to(self.root).as_posix(): path for path in self._files()}
        return {name: sha256_of(path) for name, path in files.items() if name != self.seal}

    def write(self, text: str) -> None:
        """Write the seal, once all other files have reached the disk: else a power failure could
        leave a seal of empty files."""
        for path in self._files():
            sync_file(path)
        (self.root / self.seal).write_text(text, encoding="utf-8")
        sync_file(self.root / self.seal)

    def check(self, name: str, digest: str | None, *, hint: str | None = None) -> None:
        """Check that a file is as it was listed; without a digest, that it is there.

        Raises:
            PackageError: It is missing, cannot be read, or has changed.
        """
        path = self.root / name
        try:
            if digest is None:
                open_regular(path).close()  # no pipe or device
                return
            found = sha256_of(path)
        except FileNotFoundError as error:
            message = f"{path} is missing, but {self.seal} lists it."
            raise PackageError(message, hint=hint) from error
        except OSError as error:
            raise PackageError(f"{path}: cannot be read: {error.strerror}.", hint=hint) from error
        if found != digest:
            raise PackageError(
                f"{path} has changed since {self.made}: sha256 is {found}, {self.seal} says"
                f" {digest}.",
                hint=hint,
            )

    def _files(self) -> list[Path]:
        return sorted(path for path in self.root.rglob("*") if path.is_file())


def link_or_copy(source: Path, target: Path) -> None:
    """Put a file that is never changed in place at another one, without a copy if the disk can."""
    # Who makes the result writable must not make a source writable that is to stay as it is.
    if os.access(source, os.W_OK):
        with suppress(OSError):
            # A hard link takes neither time nor room.
            os.link(source.resolve(), target)
            return
    shutil.copyfile(source, target)
