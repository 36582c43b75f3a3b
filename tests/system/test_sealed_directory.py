import os
from pathlib import Path

import pytest

from moh_deploy.errors import PackageError
from moh_deploy.system.sealed_directory import SealedDirectory


def test_digests_are_of_every_file_but_the_seal_and_hold(tmp_path: Path):
    sealed = SealedDirectory(tmp_path, "seal.json", "it was written")
    for name in ("b", "a/c", "a/seal.json", "seal.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    digests = sealed.digests()
    assert list(digests) == ["a/c", "a/seal.json", "b"]
    sealed.write("{}")
    assert (tmp_path / "seal.json").read_text() == "{}"
    for name, digest in digests.items():
        sealed.check(name, digest)
    (tmp_path / "a" / "c").write_text("changed")
    with pytest.raises(PackageError, match=r"a/c has changed since it was written: .*seal\.json s"):
        sealed.check("a/c", digests["a/c"])
    sealed.check("a/c", None)
    (tmp_path / "b").unlink()
    with pytest.raises(PackageError, match=r"b is missing, but seal\.json lists it"):
        sealed.check("b", None)
    os.mkfifo(tmp_path / "b")
    with pytest.raises(PackageError, match="b: cannot be read: it is a named pipe"):
        sealed.check("b", digests["b"], hint="Write it again.")
