from __future__ import annotations

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from moh_deploy.errors import PackageError
from moh_deploy.serving.triton.check import glibc_here, library_needs, version_of
from tests.kernel_library import required_library


@pytest.mark.skipif(shutil.which("readelf") is None, reason="readelf was not found")
def test_floor_is_what_readelf_lists():
    library = required_library()
    ran = subprocess.run(
        ["readelf", "-V", str(library)], capture_output=True, text=True, check=True
    )
    listed = {tuple(map(int, one)) for one in re.findall(r"GLIBC_(\d+)\.(\d+)", ran.stdout)}
    assert library_needs(library)[1] == max(listed)


def test_library_that_was_built_here_runs_here():
    library = required_library()
    machine, floor = library_needs(library)
    assert machine == platform.machine()
    here = glibc_here()
    assert here is not None
    assert here >= floor


def test_versions_that_follow_each_other_are_all_seen(tmp_path: Path):
    header = b"\x7fELF\x02\x01" + bytes(12) + (183).to_bytes(2, "little") + bytes(60)
    names = b"\0memcpy\0GLIBC_2.9\0GLIBC_2.34\0GLIBC_2.4\0GLIBC_PRIVATE\0"
    library = tmp_path / "lib.so"
    library.write_bytes(header + names)
    assert library_needs(library) == ("aarch64", (2, 34))


def test_what_is_no_library_is_refused(tmp_path: Path):
    path = tmp_path / "lib.so"
    path.write_bytes(b"GLIBC_2.36" * 20)
    with pytest.raises(PackageError, match=r"lib\.so is no native library"):
        library_needs(path)


@pytest.mark.parametrize(
    ("text", "version"), [("2.36", (2, 36)), ("", ()), ("of any version", ()), ("9" * 9999, None)]
)
def test_version_is_read_of_any_text(text: str, version: tuple[int, ...] | None):
    found = version_of(text)
    assert version is None or found == version
