"""Options that cannot be right are refused before PyTorch is imported."""

from pathlib import Path

import pytest

from moh_deploy.config.check_options import checked_config, require_model
from moh_deploy.config.options import ExportOptions
from moh_deploy.errors import CheckpointError, ConfigError


@pytest.mark.parametrize(
    ("named", "message", "hint"),
    [
        (
            "meta/moh-llama3",
            "meta/moh-llama3: no such file or directory.",
            "Nothing is downloaded here: hf download meta/moh-llama3 --local-dir moh-llama3, and"
            " give the directory moh-llama3.",
        ),
        (
            "https://huggingface.co/meta/llama/tree/main",
            "https://huggingface.co/meta/llama/tree/main is an address, expected a file or a",
            "Nothing is downloaded here: hf download meta/llama --local-dir llama, and give the"
            " directory llama.",
        ),
        (
            "s3://bucket/model.pt",
            "s3://bucket/model.pt is an address, expected a file or a directory.",
            "Nothing is downloaded here: download it first.",
        ),
        ("model.pt", "model.pt: no such file or directory.", None),
        ("there/last", "there/last: no such file or directory.", None),  # of a directory here
        ("runs/last.pt", "runs/last.pt: no such file or directory.", None),
        ("a.pt/b/c", "a.pt/b/c: no such file or directory.", None),
    ],
)
def test_model_that_is_not_there_is_refused_with_the_way_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str, message: str, hint: str | None
):
    monkeypatch.chdir(tmp_path)
    Path("there").mkdir()
    Path("a.pt").touch()
    with pytest.raises(CheckpointError) as refused:
        require_model(Path(named))
    assert refused.value.message.startswith(message)
    assert refused.value.hint == hint


def test_model_that_is_there_is_taken(tmp_path: Path):
    (tmp_path / "m.pt").touch()
    require_model(tmp_path)
    require_model(tmp_path / "m.pt")
    checked_config(ExportOptions(tmp_path / "m.pt", tmp_path / "out", inputs={"x": 1}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"inputs": Path("absent.npz")}, r"absent\.npz does not exist\."),
        ({"code_dirs": (Path("absent"),)}, "code directory 'absent' does not exist"),
        ({"config": Path("absent.yaml")}, "absent.yaml: no such file"),
        ({"require_layers": "most"}, "require_layers is 'most'"),
    ],
)
def test_other_path_that_is_not_there_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, object], message: str
):
    monkeypatch.chdir(tmp_path)
    Path("m.pt").touch()
    with pytest.raises(ConfigError, match=message):
        checked_config(ExportOptions(Path("m.pt"), Path("out"), **settings))  # type: ignore[arg-type]
