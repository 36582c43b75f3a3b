"""The same files give the same archive, whenever and by whomever they were packed."""

import tarfile
from pathlib import Path

import pytest

from tools.reproducible_sdist import rewrite


def packed(path: Path, names: list[str], mtime: int, uname: str) -> Path:
    sources = path.parent / f"sources-{path.stem}"
    sources.mkdir()
    with tarfile.open(path, "w:gz") as archive:
        for name in names:
            (sources / name).write_text(name)
            (sources / name).chmod(0o755 if name == "run" else 0o644)
            member = archive.gettarinfo(sources / name, f"made-1.0/{name}")
            member.mtime, member.uname = mtime, uname
            with (sources / name).open("rb") as content:
                archive.addfile(member, content)
    return path


@pytest.fixture
def archives(tmp_path: Path) -> list[Path]:
    return [
        packed(tmp_path / "a.tar.gz", ["run", "text"], 1700000000, "root"),
        packed(tmp_path / "b.tar.gz", ["text", "run"], 1700000077, "user"),
    ]


def test_order_times_and_owners_do_not_count(archives: list[Path]):
    assert archives[0].read_bytes() != archives[1].read_bytes()
    for path in archives:
        rewrite(path, 1764547200)
    assert archives[0].read_bytes() == archives[1].read_bytes()


def test_files_keep_name_content_and_executable_bit(archives: list[Path], tmp_path: Path):
    rewrite(archives[0], 1764547200)
    with tarfile.open(archives[0]) as archive:
        archive.extractall(tmp_path, filter="data")
        assert {member.mtime for member in archive} == {1764547200}
    run, text = (tmp_path / "made-1.0" / name for name in ("run", "text"))
    assert (run.read_text(), text.read_text()) == ("run", "text")
    assert (run.stat().st_mode & 0o111, text.stat().st_mode & 0o111) == (0o111, 0)
