import pytest

from moh_deploy.errors import ConfigError
from moh_deploy.system.units import (
    BYTES,
    MILLISECONDS,
    PER_SECOND,
    parse_quantity,
    parse_seconds,
)


def test_quantities_are_read_in_the_unit_that_counts_as_one():
    assert parse_quantity("1.5 s", MILLISECONDS) == 1500
    assert parse_quantity("20ms", MILLISECONDS) == 20
    assert parse_quantity("2 GiB", BYTES) == 2 * 2**30
    assert parse_quantity("100", PER_SECOND) == parse_quantity("100 /s", PER_SECOND) == 100
    assert parse_quantity("1e3/s", PER_SECOND) == 1000
    assert parse_quantity("baseline", MILLISECONDS) is None


def test_missing_and_unknown_units_are_refused():
    with pytest.raises(
        ConfigError, match=r"'20' has no unit, expected us, ms, s, min\."
    ) as missing:
        parse_quantity("20", MILLISECONDS)
    assert missing.value.hint == "Example: 20 us"
    with pytest.raises(ConfigError, match="'2 GB' has the unit 'GB', expected us, ms, s, min"):
        parse_quantity("2 GB", MILLISECONDS)
    with pytest.raises(ConfigError, match="'2 Gib' has the unit 'Gib'") as close:
        parse_quantity("2 Gib", BYTES)
    assert close.value.hint == "Did you mean 'GiB'?"


def test_times_are_of_seconds_without_a_unit():
    assert parse_seconds("5", option="--min-time") == parse_seconds("5s", option="--min-time") == 5
    assert parse_seconds("500ms", option="--min-time") == 0.5
    with pytest.raises(ConfigError, match="--min-time is 'soon', expected a time such as 5s"):
        parse_seconds("soon", option="--min-time")
    with pytest.raises(ConfigError, match="--min-time: '5 h' has the unit 'h'") as unknown:
        parse_seconds("5 h", option="--min-time")
    assert unknown.value.hint == "Example: 5 s"


@pytest.mark.parametrize(
    ("text", "unit"),
    [("2sec", "s"), ("2 seconds", "s"), ("2 S", "s"), ("3 mins", "min"), ("3m", "min")]
    + [("5 msec", "ms"), ("7 usec", "us")],
)
def test_other_spelling_of_a_unit_is_known(text: str, unit: str):
    with pytest.raises(ConfigError, match="expected s, ms, min, us") as refused:
        parse_seconds(text, option="--every")
    assert refused.value.hint == f"Did you mean '{unit}'?"
