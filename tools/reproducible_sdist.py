"""Write an sdist again without times and owners of this machine.

python tools/reproducible_sdist.py dist/*.tar.gz    with SOURCE_DATE_EPOCH in the environment

setuptools keeps the times at which files were checked out. Files are sorted, belong to root, and
have the time SOURCE_DATE_EPOCH, so that the same sources give the same bytes.
"""

import gzip
import io
import os
import sys
import tarfile
from pathlib import Path


def rewrite(path: Path, epoch: int) -> None:
    """Replace a .tar.gz by one of the same files at the same time."""
    packed = io.BytesIO()
    with (
        tarfile.open(path) as old,
        gzip.GzipFile(filename="", mode="wb", fileobj=packed, mtime=epoch) as compressed,
        tarfile.open(mode="w", fileobj=compressed, format=tarfile.PAX_FORMAT) as new,
    ):
        for member in sorted(old.getmembers(), key=lambda member: member.name):
            content = old.extractfile(member) if member.isfile() else None
            executable = member.isdir() or member.mode & 0o100
            member.mode = 0o755 if executable else 0o644
            member.mtime, member.pax_headers = epoch, {}
            member.uid = member.gid = 0
            member.uname = member.gname = ""
            new.addfile(member, content)
    path.write_bytes(packed.getvalue())


if __name__ == "__main__":
    for name in sys.argv[1:]:
        rewrite(Path(name), int(os.environ["SOURCE_DATE_EPOCH"]))
