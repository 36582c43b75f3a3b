import errno
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from moh_deploy.errors import PackageError
from moh_deploy.package import OnnxPackage, PackageWriter, check_package_output
from tests.handmade_package import MANIFEST, model, vectors, write_package
from tests.nightly import sampled

REPOSITORY = Path(__file__).parents[2]


def names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def test_package_appears_with_its_parents(tmp_path: Path):
    write_package(tmp_path / "a" / "b")
    assert names(tmp_path) == ["a"]
    assert names(tmp_path / "a") == ["b"]
    OnnxPackage.open(tmp_path / "a" / "b")


def test_package_appears_only_when_it_is_finished(tmp_path: Path):
    output = tmp_path / "package"
    with PackageWriter(output) as writer:
        writer.path("model.onnx").write_bytes(model().SerializeToString())
        assert not output.exists()
        assert all(name.startswith(".") for name in names(tmp_path))
        assert writer.root.stat().st_mode & 0o077 == 0
        package = writer.finish(MANIFEST, [vectors()])
        assert package.root == output
    assert names(tmp_path) == ["package"]


def modes(root: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mode & 0o7777 for path in (root, *root.iterdir())}


def test_permissions_follow_the_umask_and_those_of_an_earlier_package_are_kept(tmp_path: Path):
    before = os.umask(0o027)
    try:
        root = write_package(tmp_path / "package").root
    finally:
        os.umask(before)
    assert modes(root)["package"] == 0o750
    root.chmod(0o700)
    write_package(root)
    assert modes(root)["package"] == 0o700


def test_file_that_is_read_only_is_copied_and_not_shared(tmp_path: Path, monkeypatch):
    """Who makes the result writable must not make a release writable."""
    source = write_package(tmp_path / "source", external_data=True)
    data = source.root / "model.onnx.data"
    data.chmod(0o444)
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != data and access(path, mode))
    with PackageWriter(tmp_path / "output") as writer:
        for name in ("model.onnx", "model.onnx.data"):
            writer.bring_along(source, name)
        output = writer.finish(MANIFEST, [vectors()]).root
    assert not data.samefile(output / "model.onnx.data")
    assert data.read_bytes() == (output / "model.onnx.data").read_bytes()
    assert modes(output)["model.onnx.data"] & 0o200
    assert (source.root / "model.onnx").samefile(output / "model.onnx")


def test_earlier_package_and_empty_directory_are_replaced(tmp_path: Path):
    output = tmp_path / "package"
    output.mkdir()
    write_package(output, external_data=True)
    write_package(output, with_layer=False)
    assert OnnxPackage.open(output).manifest.layers == ()
    assert names(output) == ["manifest.json", "model.onnx", "vectors.npz"]
    assert names(tmp_path) == ["package"]


def test_package_behind_a_link_is_replaced_and_the_link_stays(tmp_path: Path):
    write_package(tmp_path / "v1")
    (tmp_path / "current").symlink_to("v1")
    write_package(tmp_path / "current", with_layer=False)
    assert (tmp_path / "current").is_symlink()
    assert OnnxPackage.open(tmp_path / "v1").manifest.layers == ()
    assert names(tmp_path) == ["current", "v1"]


def fail_halfway(output: Path) -> None:
    with PackageWriter(output) as writer:
        writer.path("model.onnx").write_bytes(b"x")
        raise ZeroDivisionError


def test_failure_leaves_nothing_and_keeps_the_earlier_package(tmp_path: Path):
    write_package(tmp_path / "old")
    before = {file.name: file.read_bytes() for file in (tmp_path / "old").iterdir()}
    for output in (tmp_path / "old", tmp_path / "new" / "deep"):
        with pytest.raises(ZeroDivisionError):
            fail_halfway(output)
    assert names(tmp_path) == ["new", "old"]  # the parent was made
    assert names(tmp_path / "new") == []
    assert {file.name: file.read_bytes() for file in (tmp_path / "old").iterdir()} == before


def test_package_without_model_is_refused(tmp_path: Path):
    with (
        pytest.raises(PackageError, match=r"nothing was written to model\.onnx"),
        PackageWriter(tmp_path / "package") as writer,
    ):
        writer.finish(MANIFEST, [vectors()])
    assert names(tmp_path) == []


@pytest.mark.parametrize("which", ["package", "partial"])
def test_package_that_cannot_be_renamed_stays(tmp_path: Path, monkeypatch, which: str):
    """overlayfs renames no directory of a lower layer; nor can the new one take its place."""
    root = write_package(tmp_path / "package").root
    rename = Path.rename

    def within_layers(path: Path, target: Path) -> Path:
        if path == root if which == "package" else "partial" in path.name:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", within_layers)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(PackageError, match=r"cannot be put in place: .*cross-device"):
        write_package(root, with_layer=False)
    assert OnnxPackage.open(root).manifest.layers
    assert names(tmp_path) == ["package"]
    assert len(os.listdir("/proc/self/fd")) == before


def test_output_that_is_a_file_or_below_one_is_refused(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(PackageError, match="file is a file, expected a directory"):
        check_package_output(tmp_path / "file")
    with pytest.raises(PackageError, match="file is not a directory"):
        check_package_output(tmp_path / "file" / "package")


@pytest.mark.parametrize("content", ["notes.txt", "manifest.json"])
def test_directory_that_is_no_package_is_refused_and_kept(tmp_path: Path, content: str):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / content).write_text('{"name": "something else"}')
    with (
        pytest.raises(PackageError, match="mine exists and is not a package"),
        PackageWriter(tmp_path / "mine"),
    ):
        pytest.fail("entered")
    assert names(tmp_path / "mine") == [content]


def test_package_with_a_file_of_the_users_is_refused(tmp_path: Path):
    root = write_package(tmp_path / "package").root
    (root / "notes.txt").touch()
    with pytest.raises(PackageError, match=r"holds 'notes\.txt', which is not part of a package"):
        check_package_output(root)


def test_package_that_another_is_made_of_is_refused_and_kept(tmp_path: Path):
    root = write_package(tmp_path / "package").root
    (tmp_path / "link").symlink_to(root)
    for output in (root, tmp_path / "link"):
        with pytest.raises(PackageError, match="is the package that another one is to be made of"):
            check_package_output(output, made_of=root)
    check_package_output(tmp_path / "other", made_of=root)
    check_package_output(root, made_of=tmp_path / "none")


def test_current_directory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PackageError, match="current directory"):
        check_package_output(Path())
    check_package_output(Path("package"))


def test_link_to_a_mount_point_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "mounted").mkdir()
    (tmp_path / "link").symlink_to("mounted")
    monkeypatch.setattr(os.path, "ismount", lambda path: path == tmp_path / "mounted")
    for output in (tmp_path / "mounted", tmp_path / "link"):
        with pytest.raises(PackageError, match=f"{output} is the current directory or a mount"):
            check_package_output(output)


def test_directory_without_write_permission_is_refused(tmp_path: Path, monkeypatch):
    (tmp_path / "locked").mkdir()
    monkeypatch.setattr(os, "access", lambda path, _: path != tmp_path / "locked")
    with pytest.raises(PackageError, match="no permission to write"):
        check_package_output(tmp_path / "locked" / "package")


@pytest.mark.parametrize("locked", ["package", "package/model.onnx"])
def test_read_only_package_is_refused(tmp_path: Path, locked: str, monkeypatch: pytest.MonkeyPatch):
    root = write_package(tmp_path / "package").root
    monkeypatch.setattr(os, "access", lambda path, _: path != tmp_path / locked)
    with pytest.raises(PackageError, match=rf"read-only.*{locked}\. .*chmod -R u\+w .*package`"):
        check_package_output(root)


def test_what_was_replaced_and_cannot_be_removed_is_named(tmp_path: Path, monkeypatch):
    write_package(tmp_path / "package")

    def locked(path: Path, *, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(shutil, "rmtree", locked)
    with pytest.raises(PackageError, match=r"package is written, but .* Permission") as refused:
        write_package(tmp_path / "package", with_layer=False)
    replaced, written = sorted(tmp_path.iterdir())
    assert str(replaced) in (refused.value.hint or "")
    assert OnnxPackage.open(written).manifest.layers == ()


def test_missing_room_is_found_before_writing(tmp_path: Path):
    with (
        pytest.raises(PackageError, match=rf"disk full: .* needs {2**62} bytes, \d+ bytes free"),
        PackageWriter(tmp_path / "package") as writer,
    ):
        writer.require_free(2**62)
    assert names(tmp_path) == []


def in_subprocess(code: str, *arguments: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@sampled(2)
@pytest.mark.usefixtures("warm_processes")
@pytest.mark.parametrize(
    "write",
    [
        "open(path, 'wb').write(bytes(1 << 20))",
        "np.zeros(1 << 20, np.uint8).tofile(open(path, 'wb', buffering=0))",
    ],
    ids=["write", "tofile"],
)
def test_full_disk_is_an_error_with_bytes_and_leaves_nothing(tmp_path: Path, write: str):
    code = f"""
        import resource, sys
        from pathlib import Path
        import numpy as np
        from moh_deploy.errors import PackageError
        from moh_deploy.package import PackageWriter
        resource.setrlimit(resource.RLIMIT_FSIZE, ({1 << 16}, {1 << 16}))
        try:
            with PackageWriter(Path(sys.argv[1])) as writer:
                writer.require_free(1 << 20)
                path = writer.path("model.onnx")
                {write}
        except PackageError as error:
            print(error.message)
    """
    out, err = in_subprocess(code, tmp_path / "package").communicate(timeout=60)
    assert err == ""
    assert "disk full while writing" in out
    assert f"{1 << 20} bytes needed, {1 << 16} bytes written" in out
    assert names(tmp_path) == []


WAITING_WRITER = """
    import sys, time
    from pathlib import Path
    from moh_deploy.package import PackageWriter
    with PackageWriter(Path(sys.argv[1])) as writer:
        writer.path("model.onnx").write_bytes(b"x" * 1000)
        print("ready", flush=True)
        time.sleep(60)
"""

# Python swallows exceptions in a finaliser: one raised by a signal handler would get lost here.
WRITER_IN_FINALISER = """
    import sys, time
    from pathlib import Path
    from moh_deploy.package import PackageWriter
    class Slow:
        def __del__(self):
            print("ready", flush=True)
            time.sleep(5)
    with PackageWriter(Path(sys.argv[1])) as writer:
        writer.path("model.onnx").write_bytes(b"x" * 1000)
        Slow()
        time.sleep(60)
"""


@sampled(2)
@pytest.mark.usefixtures("warm_processes")
@pytest.mark.parametrize(
    ("code", "number"),
    [
        (WAITING_WRITER, signal.SIGTERM),
        (WAITING_WRITER, signal.SIGHUP),
        (WAITING_WRITER, signal.SIGINT),
        (WRITER_IN_FINALISER, signal.SIGTERM),
    ],
    ids=["SIGTERM", "SIGHUP", "SIGINT", "SIGTERM in a finaliser"],
)
def test_signal_ends_the_process_and_leaves_nothing(
    tmp_path: Path, code: str, number: signal.Signals
):
    with in_subprocess(code, tmp_path / "new" / "package") as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
    assert process.returncode == -number
    assert names(tmp_path / "new") == []
