from __future__ import annotations

import errno
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from moh_deploy.errors import ConfigError
from moh_deploy.frontend.load.weights import build_module
from moh_deploy.system.user_code import user_code
from tests.frontend.checkpoints import write_net
from tests.locked import lock


def test_factory_is_imported_from_the_code_directory_and_called(code_dir: Path) -> None:
    module = build_module("user_net:build", {"width": 7}, code_dirs=[code_dir])
    assert module.first.out_features == 7


def test_class_is_a_factory_too(code_dir: Path) -> None:
    module = build_module("user_net:Net", {}, code_dirs=[code_dir])
    assert isinstance(module, torch.nn.Module)


def test_what_user_code_prints_goes_to_stderr(
    code_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build_module("user_net:build", {}, code_dirs=[code_dir])
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "a factory module that prints" in captured.err
    assert "a factory that prints" in captured.err


def test_code_directory_stays_importable_afterwards(code_dir: Path) -> None:
    (code_dir / "user_late.py").write_text("VALUE = 5")
    build_module("user_net:build", {}, code_dirs=[code_dir])
    assert importlib.import_module("user_late").VALUE == 5


def test_each_model_gets_its_own_module_of_a_common_name(tmp_path: Path) -> None:
    for name, width in (("a", 5), ("b", 6)):
        source = f"from torch import nn\ndef build():\n    return nn.Linear({width}, 1)\n"
        (tmp_path / name).mkdir()
        (tmp_path / name / "user_models.py").write_text(source)
    widths = [
        build_module("user_models:build", {}, code_dirs=[tmp_path / name]).in_features
        for name in ("a", "b", "a")
    ]
    assert widths == [5, 6, 5]


def test_module_of_the_same_directory_is_imported_once(code_dir: Path) -> None:
    build_module("user_net:build", {}, code_dirs=[code_dir])
    first = sys.modules["user_net"]
    build_module("user_net:build", {}, code_dirs=[code_dir])
    assert sys.modules["user_net"] is first


def test_code_directory_cannot_replace_the_standard_library(tmp_path: Path) -> None:
    (tmp_path / "random.py").write_text("raise RuntimeError('shadowed')")
    import random

    with user_code([tmp_path]):
        assert sys.modules["random"] is random


def test_missing_code_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"code directory '.*absent' does not exist"):
        build_module("user_net:build", {}, code_dirs=[tmp_path / "absent"])


@pytest.mark.parametrize(
    "factory", ["user_net", "user_net:", ":build", "user_net.py:build", "a b:c"]
)
def test_malformed_factory_is_refused(factory: str) -> None:
    with pytest.raises(ConfigError, match="is malformed; expected MODULE:CALLABLE"):
        build_module(factory, {}, code_dirs=[])


def test_module_that_does_not_exist_is_refused_naming_the_option(code_dir: Path) -> None:
    with pytest.raises(ConfigError, match="no module 'user_absent'") as caught:
        build_module("user_absent:build", {}, code_dirs=[code_dir])
    assert f"--code-dir (now: '{code_dir}')" in str(caught.value.hint)


def test_module_of_the_current_directory_is_pointed_at(
    code_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(code_dir)
    with pytest.raises(ConfigError, match="no module 'user_net'") as caught:
        build_module("user_net:build", {}, code_dirs=[])
    assert caught.value.hint == "'user_net' lies in '.': add --code-dir ."


def test_missing_import_of_the_module_is_named(tmp_path: Path) -> None:
    (tmp_path / "user_needy.py").write_text("import absent_package.part")
    with pytest.raises(ConfigError, match=r"No module named 'absent_package' \(user_needy.py:1\)"):
        build_module("user_needy:build", {}, code_dirs=[tmp_path])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = ", "SyntaxError"),
        ("1 / 0", r"ZeroDivisionError: division by zero \(user_broken.py:1\)"),
        ("raise SystemExit(2)", "SystemExit: 2"),
    ],
)
def test_module_that_fails_at_import_is_refused(tmp_path: Path, source: str, message: str) -> None:
    (tmp_path / "user_broken.py").write_text(source)
    with pytest.raises(ConfigError, match=f"failed at import: {message}"):
        build_module("user_broken:build", {}, code_dirs=[tmp_path])


def test_attribute_that_does_not_exist_is_refused_listing_what_does(code_dir: Path) -> None:
    with pytest.raises(ConfigError, match="module 'user_net' has no attribute 'biuld'") as caught:
        build_module("user_net:biuld", {}, code_dirs=[code_dir])
    hint = str(caught.value.hint)
    assert "Did you mean 'build'?" in hint
    assert "It defines: Net, Tied, build, build_tied" in hint


def test_attribute_that_is_not_callable_is_refused(code_dir: Path) -> None:
    with pytest.raises(ConfigError, match="'user_net:WIDTH' is a int, not a callable"):
        build_module("user_net:WIDTH", {}, code_dirs=[code_dir])


def test_wrong_keyword_arguments_are_refused_with_the_signature(code_dir: Path) -> None:
    message = r"called with height=3 raised TypeError: .*unexpected keyword argument 'height'"
    with pytest.raises(ConfigError, match=message) as caught:
        build_module("user_net:Net", {"height": 3}, code_dirs=[code_dir])
    assert "Net(width=4)" in str(caught.value.hint)


def test_error_of_the_factory_is_shown(code_dir: Path) -> None:
    with pytest.raises(ConfigError, match="raised ValueError: size 3 is odd"):
        build_module("user_net:fail", {"size": 3}, code_dirs=[code_dir])


def test_factory_that_exits_does_not_end_the_command(code_dir: Path) -> None:
    with pytest.raises(ConfigError, match="raised SystemExit: 4"):
        build_module("user_net:leave", {}, code_dirs=[code_dir])


def test_factory_that_returns_no_module_is_refused(code_dir: Path) -> None:
    message = re.escape("returned a int; expected a torch.nn.Module")
    with pytest.raises(ConfigError, match=message):
        build_module("user_net:build_number", {}, code_dirs=[code_dir])


def test_factory_in_a_package_is_found(tmp_path: Path) -> None:
    write_net(tmp_path / "user_package", "nets")
    (tmp_path / "user_package" / "__init__.py").touch()
    assert build_module("user_package.nets:Net", {}, code_dirs=[tmp_path]) is not None


def test_package_that_a_factory_imports_when_it_is_called_is_named(tmp_path: Path) -> None:
    (tmp_path / "user_lazy.py").write_text("def build():\n    import no_such_package\n")
    with pytest.raises(ConfigError, match="needs the package 'no_such_package'") as caught:
        build_module("user_lazy:build", {}, code_dirs=[tmp_path])
    assert "Install" in str(caught.value.hint)


def test_directory_that_may_not_be_entered_is_no_package(
    code_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code_dir / "locked").mkdir()
    lock(code_dir / "locked", monkeypatch)
    assert build_module("user_net:build", {}, code_dirs=[code_dir]) is not None


def test_code_directory_that_cannot_be_listed_is_refused(
    code_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def listed(path: Path) -> Iterator[Path]:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", listed)
    message = f"code directory cannot be read: .*Permission denied: '{code_dir}'"
    with pytest.raises(ConfigError, match=message):
        build_module("user_net:build", {}, code_dirs=[code_dir])
