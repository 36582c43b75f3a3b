from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict

from moh_deploy.config.checked_yaml import checked, read_mapping
from moh_deploy.errors import ConfigError


class Lamp(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    colour: str
    watts: int


def known(section: object) -> list[str]:
    return list(Lamp.model_fields)


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path):
    path = tmp_path / "lamp.yaml"
    path.write_text("color: red\nwatts: many\n")
    with pytest.raises(ConfigError) as error:
        checked(read_mapping(path, Lamp), Lamp, str(path), known)
    assert error.value.message.splitlines() == [
        f"{path}: colour is missing.",
        f"{path}: watts is 'many': input should be a valid integer.",
        f"{path}: color is not a known key. Did you mean 'colour'? It may hold: colour, watts.",
    ]
    path.write_text("colour: red\nwatts: 5\n")
    assert checked(read_mapping(path, Lamp), Lamp, "lamp", known) == Lamp(colour="red", watts=5)


def test_file_that_holds_no_mapping_says_what_it_may_hold(tmp_path: Path):
    path = tmp_path / "lamp.yaml"
    path.write_text("- red\n")
    with pytest.raises(ConfigError, match=r"expected a mapping with colour, watts, got \['red'\]"):
        read_mapping(path, Lamp)
