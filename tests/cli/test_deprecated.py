"""Deprecated names work and warn, and docs/deprecations.md lists all of them."""

import json
import re
import tomllib
from pathlib import Path
from typing import Annotated

import click
import pytest
from packaging.version import Version

import moh_deploy
from moh_deploy.cli.command import command
from moh_deploy.config.deprecated import DEPRECATED, Deprecated
from moh_deploy.config.dtypes import dtype_named
from tests.cli.run_cli import Cli

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "deprecations.md").read_text()
# | old | new | since | gone in |
ROWS = [row.split("|")[1:-1] for row in re.findall(r"^\|.*0\.\d.*\|$", PAGE, re.MULTILINE)]
LISTED = [tuple(cell.strip() for cell in row) for row in ROWS if len(row) == 4]


def test_page_lists_the_deprecated_names():
    names = {(f"`{item.old}`", f"`{item.new}`", *item[2:]) for item in DEPRECATED.values()}
    assert names == {row for row in LISTED if row[0].startswith("`")}


def test_names_that_this_release_refuses_are_gone():
    for old, _, _, gone_in in LISTED:
        assert Version(moh_deploy.__version__) < Version(gone_in), old


def test_extras_and_json_keys_of_the_page_are_there():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for old, new, *_ in LISTED:
        if old.startswith("extra"):
            target = extras["optional-dependencies"][new.removeprefix("extra ").strip("`")]
            was = extras["optional-dependencies"][old.removeprefix("extra ").strip("`")]
            assert was == [f"moh-deploy[{new.removeprefix('extra ').strip('`')}]"]
            assert target
        if old.startswith("JSON"):
            *keys, name = re.findall("`(.*?)`", old)
            schema = (ROOT / "docs" / f"{name}.schema.json").read_text()
            known = json.dumps(json.loads(schema))
            assert all(f'"{key}": {{' in known for key in keys)


@pytest.mark.parametrize("old", DEPRECATED)
def test_old_dtype_means_the_new_one_and_warns(old: str):
    with pytest.warns(FutureWarning, match=rf"'{old}' is called '{DEPRECATED[old].new}' since 0.2"):
        assert dtype_named(old, [DEPRECATED[old].new], option="to") == DEPRECATED[old].new


@pytest.mark.parametrize("arguments", ["precision {} --to fp16 -o out", "bisect {} --to fp16"])
def test_old_value_of_an_option_is_taken_and_warned_of(cli: Cli, tmp_path: Path, arguments: str):
    ended = cli(*arguments.format(tmp_path).split())
    assert ended.exit_code == 5  # there is no package, as for the new name
    assert ended.err.splitlines()[0] == f"warning: {DEPRECATED['fp16'].message}"


@pytest.mark.parametrize("given", [["--old", "5"], ["--old=5"]])
def test_old_option_is_taken_and_warned_of(
    given: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    renamed = Deprecated("--old", "--new", since="0.2", gone_in="0.3")
    monkeypatch.setitem(DEPRECATED, "--old", renamed)
    seen = []

    @command("try")
    def try_command(new: Annotated[int, "A number."]) -> None:
        seen.append(new)

    try_command.main(given, standalone_mode=False)
    assert seen == [5]
    assert capsys.readouterr().err == f"warning: {renamed.message}\n"
    with pytest.raises(click.NoSuchOption):
        try_command.main(["--older", "5"], standalone_mode=False)


def test_removed_backend_is_refused(cli: Cli, tmp_path: Path):
    ended = cli("bundle", str(tmp_path), "-o", "out", "--backend", "onnxruntime")
    assert ended.exit_code == 2
    assert "'onnxruntime' is not one of 'python', 'tensorrt'" in ended.err
