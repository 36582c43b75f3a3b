"""What once ended in a traceback, hung, or took all memory: it is refused in a sentence."""

import io
import json
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.cli.run_cli import Cli
from tests.handmade_package import WIDTH, write_package
from tests.nightly import nightly, nightly_if, one_in, sampled
from tests.repaired_package import change_model, replace_file, rewrite_manifest


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_package(tmp_path / "package").root


def npy(shape: str) -> bytes:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(96)


def archive(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", method) as made:
        for name, data in members.items():
            made.writestr(name, data)
    return content.getvalue()


def encrypted(content: bytes) -> bytes:
    table = content.index(b"PK\x01\x02")
    return content[: table + 8] + struct.pack("<H", 1) + content[table + 10 :]


def with_vectors(content: Callable[[], bytes]) -> Callable[[Path], object]:
    return lambda root: replace_file(root, "vectors.npz", content())


def with_manifest(text: str) -> Callable[[Path], object]:
    return lambda root: (root / "manifest.json").write_text(text)


def with_special(name: str, make: Callable[[Path], object]) -> Callable[[Path], object]:
    def change(root: Path) -> None:
        (root / name).unlink()
        make(root / name)

    return change


def with_file(name: str) -> Callable[[Path], object]:
    return lambda root: rewrite_manifest(root, lambda found: found["files"].update({name: "0"}))


def with_odd_name(root: Path) -> None:
    content = (root / "model.onnx").read_bytes().replace(b"gates_0", b"gates\xff0")
    replace_file(root, "model.onnx", content)


def with_data_of_others(root: Path) -> None:
    def change(model: object) -> None:
        tensor = model.graph.initializer[0]  # type: ignore[attr-defined]
        tensor.ClearField("raw_data")
        tensor.data_location = 1
        tensor.external_data.add(key="location", value="/etc/passwd")

    change_model(root, change)


PACKAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "nested manifest": (with_manifest('{"a":' * 5000 + "1" + "}" * 5000), "nested deeper than"),
    "nested list": (with_manifest("[" * 100_000), "nested deeper than"),
    "number": (with_manifest('{"format_version": ' + "1" * 5000 + "}"), "not valid JSON"),
    "pipe": (with_special("manifest.json", os.mkfifo), "it is a named pipe"),
    "zeros": (with_special("manifest.json", lambda p: p.symlink_to("/dev/zero")), "a device"),
    "pipe for a model": (with_special("model.onnx", os.mkfifo), "it is a named pipe"),
    "long file name": (with_file("x" * 5000), "expected a plain file name"),
    "parent": (with_file(".."), "expected a plain file name"),
    "nul": (with_file("a\0b"), "expected a plain file name"),
    "name that is no text": (with_odd_name, "which is not UTF-8"),
    "data of others": (with_data_of_others, "is in '/etc/passwd', expected 'model.onnx.data'"),
    "encrypted": (with_vectors(lambda: encrypted(archive({"0/inputs/x": b""}))), "is encrypted"),
    "huge": (with_vectors(lambda: archive({"0/inputs/x.npy": npy(f"({2**50},)")})), "bytes, but"),
    "64 bits": (with_vectors(lambda: archive({"0/inputs/x.npy": npy(f"({2**70},)")})), "but has"),
    "bomb": (
        with_vectors(lambda: archive({"0/inputs/x.npy": bytes(2**28 + 1)}, zipfile.ZIP_DEFLATED)),
        "its members hold 268435457 bytes",
    ),
}


@sampled(4)
@pytest.mark.parametrize("name", PACKAGES)
@pytest.mark.parametrize(
    "command",
    one_in(
        3,
        [
            ["inspect"],
            ["precision", "--to", "float16", "-o", "half"],
            ["inline", "-o", "flat.onnx"],
        ],
    ),
)
def test_package_is_refused(cli: Cli, root: Path, name: str, command: list[str], monkeypatch):
    monkeypatch.chdir(root.parent)
    change, message = PACKAGES[name]
    change(root)
    failed = cli(command[0], root, *command[1:])
    assert failed.exit_code == 5
    assert failed.err.startswith("error: ")
    assert message in failed.err


YAML = {
    "date": ("a: 2001-99-99", "a: is '2001-99-99', which is no timestamp"),
    "int": ('a: !!int "x"', "a: is 'x', which is no int"),
    "timestamp": ("a: !!timestamp x", "a: is 'x', which is no timestamp"),
    "digits": ("a: " + "9" * 5000, "which is no int"),
    "hex digits": ("a: 0x" + "f" * 5000, "a: is a number of more than 64 bits"),
    "nested": ("{" * 5000, "nested deeper than"),
    "alias of itself": ("a: &a [*a]", "nested deeper than"),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=nightly_if(name == "nested")) for name in YAML]
)
def test_yaml_is_refused(cli: Cli, root: Path, tmp_path: Path, name: str):
    text, message = YAML[name]
    path = tmp_path / "a.yaml"
    path.write_text(text)
    (tmp_path / "model.pt").touch()
    for arguments in (
        ("verify", root, "--policy", path),
        ("export", tmp_path / "model.pt", "-o", tmp_path / "out", "--config", path),
        ("export", tmp_path / "model.pt", "-o", tmp_path / "out", "--set", f"dims.b={text[3:]}"),
    ):
        failed = cli(*arguments)
        assert failed.exit_code == 2, arguments
        assert failed.err.startswith("error: ")
        if "--set" not in arguments:
            assert message in failed.err


def test_override_of_an_entry_beyond_all_numbers_is_refused(cli: Cli, tmp_path: Path):
    option = f"outputs.{'9' * 5000}=1"
    (tmp_path / "m.pt").touch()
    assert cli("export", tmp_path / "m.pt", "-o", tmp_path / "o", "--set", option).exit_code == 2


@nightly
def test_inputs_of_a_user_are_refused(cli: Cli, root: Path, tmp_path: Path):
    path = tmp_path / "in.npz"
    whole = io.BytesIO()
    np.lib.format.write_array(whole, np.zeros((2, 3, WIDTH), np.float32))
    for content, message in (
        (encrypted(archive({"x.npy": whole.getvalue()})), "is encrypted"),
        (archive({"x.npy": npy(f"({2**50},)")}), "bytes, but has"),
        (archive({"x.npy": bytes(2**28 + 1)}, zipfile.ZIP_DEFLATED), "its members hold"),
    ):
        path.write_bytes(content)
        failed = cli("run", root, "--inputs", path, "--outputs", tmp_path / "out.npz")
        assert failed.exit_code == 2
        assert message in failed.err


def test_nested_json_in_a_program_is_refused(cli: Cli, tmp_path: Path):
    path = tmp_path / "model.pt2"
    nested = b'{"a":' * 5000 + b"1" + b"}" * 5000
    path.write_bytes(archive({"m/archive_format": b"pt2", "m/models/model.json": nested}))
    failed = cli("export", path, "-o", tmp_path / "out")
    assert failed.exit_code == 3
    assert "nested deeper than" in failed.err


def test_nested_baseline_file_is_refused(cli: Cli, root: Path, tmp_path: Path):
    (tmp_path / "b.json").write_text(
        json.dumps({"schema_version": 1})[:-1] + ', "a": ' + "[" * 9999
    )
    failed = cli("verify", root, "--baseline-file", tmp_path / "b.json")
    assert failed.exit_code == 2
    assert "nested deeper than" in failed.err
