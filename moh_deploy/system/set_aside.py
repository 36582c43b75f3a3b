"""Give a directory that is about to be replaced a hidden name, whole, so that it can come back."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from moh_deploy.system.leftovers import Claim, claim_directory, claim_existing, hidden_sibling


def set_aside(directory: Path) -> Claim:
    """Give a directory a hidden name, after which nothing stands where it was.

    No signal may come meanwhile: see `signals_held`.

    Raises:
        OSError: That cannot be done; the directory is still there, and as it was.
    """
    # Locked before it is hidden: another run must not take it for a leftover.
    claim = claim_existing(directory)
    claim.path = hidden_sibling(directory, "replaced")
    try:
        directory.rename(claim.path)
    except OSError as error:
        claim.release()
        # overlayfs renames no directory of a lower layer: none that lies in a container's image.
        if error.errno == errno.EXDEV:
            return _copied_aside(directory)
        raise
    return claim


def _copied_aside(directory: Path) -> Claim:
    copy = claim_directory(directory)
    try:
        _copy_into(directory, copy.path)
        # Until it is whole, it has the name of what is unfinished, which the next run removes.
        copy.path = copy.path.rename(hidden_sibling(directory, "replaced"))
    except OSError:
        _drop(copy)
        raise
    try:
        shutil.rmtree(directory)
    except OSError:
        _copy_into(copy.path, directory)
        _drop(copy)
        raise
    return copy


def _copy_into(source: Path, target: Path) -> None:
    shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)


def _drop(copy: Claim) -> None:
    shutil.rmtree(copy.path, ignore_errors=True)
    copy.release()
