from pathlib import Path
from typing import Annotated

import pytest
from pydantic import BaseModel, ConfigDict, Field

from moh_deploy.config.checked_yaml import checked, read_mapping
from moh_deploy.errors import ConfigError


class Section(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class Lamp(Section):
    colour: str
    watts: int


class House(Section):
    rooms: dict[str, Lamp | None] = {}
    stairs: Annotated[tuple[Lamp, ...], Field(strict=False)] = ()
    porch: Annotated[Lamp, Field()] | None = None


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path):
    path = tmp_path / "lamp.yaml"
    path.write_text("color: red\nwatts: many\n")
    with pytest.raises(ConfigError) as error:
        checked(read_mapping(path, Lamp), Lamp, str(path))
    assert error.value.message.splitlines() == [
        f"{path}: colour is missing.",
        f"{path}: watts is 'many': input should be a valid integer.",
        f"{path}: color is not a known key. Did you mean 'colour'? It may hold: colour, watts.",
    ]
    path.write_text("colour: red\nwatts: 5\n")
    assert checked(read_mapping(path, Lamp), Lamp, "lamp") == Lamp(colour="red", watts=5)


def test_file_that_holds_no_mapping_says_what_it_may_hold(tmp_path: Path):
    path = tmp_path / "lamp.yaml"
    path.write_text("- red\n")
    with pytest.raises(
        ConfigError, match=r"holds \['red'\]; expected a mapping with colour, watts\."
    ):
        read_mapping(path, Lamp)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"x": {}}, "x is not a known key. It may hold: rooms, stairs, porch."),
        (
            {"stairs": [{"kind": 1}]},
            "stairs.0.kind is not a known key. It may hold: colour, watts.",
        ),
        ({"porch": {"color": 1}}, "porch.color is not a known key. Did you mean 'colour'? It may"),
        (
            {"rooms": {"stairs": {"kind": 1}}},
            "rooms.stairs.kind is not a known key. It may hold: c",
        ),
        (
            {"rooms": {"colour": {"kind": 1}}},
            "rooms.colour.kind is not a known key. It may hold: c",
        ),
    ],
)
def test_unknown_key_is_told_those_of_its_section(document: object, words: str):
    with pytest.raises(ConfigError) as error:
        checked(document, House, "house.yaml")
    assert f"house.yaml: {words}" in error.value.message
