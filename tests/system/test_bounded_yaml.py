from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from moh_deploy.errors import ConfigError
from moh_deploy.system.bounded_yaml import parse_yaml, read_yaml
from tests.nightly import sampled

LAUGHS = "a0: &a0 [x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)
MERGED_LAUGHS = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 12)
)


@sampled(4)
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: {b: [1, 2001-99-99]}", r"m: a\.b\.1: is '2001-99-99', which is no timestamp"),
        ('a: !!int "x"', "m: a: is 'x', which is no int"),
        ("a: !!timestamp x", "m: a: is 'x', which is no timestamp"),
        ('a: !!float "x"', "m: a: is 'x', which is no float"),
        ("a: !!bool x", "m: a: is 'x', which is no bool"),
        ("a: !!binary 'ä'", "m: a: is not valid YAML: .*base64"),
        ("a: " + "9" * 5000, r"m: a: is '9{57}\.\.\.', which is no int"),
        ("a: 0x" + "f" * 5000, "m: a: is a number of more than 64 bits"),
        ('a: "\\ud800"', r"m: a: is '\\ud800', which is no str"),
        ('"\\UFFFFFFFF"', "m: is not valid YAML"),
        ("%YAML " + "9" * 5000 + ".1\n--- a", "m: is not valid YAML"),
        ("{" * 5000, "m: is not valid YAML: it is nested deeper than 50"),
        ("[" * 60 + "]" * 60, "m: it is nested deeper than 50"),
        ("&a [*a]", "m: it is nested deeper than 50"),
        ("&a {<<: *a}", "m: it is nested deeper than 50"),
        (LAUGHS, "m: it holds more than 100000 values, aliases counted"),
        (MERGED_LAUGHS, "m: it holds more than 100000 values, aliases counted"),
        ("a: !!python/object/apply:os.system [id]", "m: a: is of type '.*os.system', expected"),
        ("a: !!set {b}", "m: a: is of type '.*set', expected a mapping or a list"),
        ("a: !own b", "m: a: is not valid YAML: could not determine a constructor"),
        ("? [a]\n: b", "m: a key is a list or a mapping"),
        ("a: {b: 1, b: 2}", "m: a: key 'b' stands twice, in line 1 again"),
        ("a: {<<: 3}", "m: a: '<<' is no mapping"),
        ("a: *b", "m: is not valid YAML: found undefined alias"),
        ("a: 1\n---\nb: 2", "m: is not valid YAML: expected a single document"),
        ("\x07", "m: is not valid YAML"),
    ],
)
def test_what_is_no_plain_value_is_refused_where_it_stands(text: str, message: str):
    with pytest.raises(ConfigError, match=f"^{message}"):
        parse_yaml(text, "m", error=ConfigError)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "3",
        "{a: [1, 2.5, true, null, text, 0x1f, 1_000, .inf], b: {c: 2001-01-01}}",
        "x: &x {a: 1, b: 2}\ny: {<<: *x, b: 3}\nz: [*x, *x]",
        "x: &x {a: 1}\nw: &w {a: 2, c: 4}\ny: {<<: [*x, *w], b: 3}",
        "1: {2.5: x}",
        "a: |\n  text\n  more\nb: 'it''s'",
        "a: !!str 3",
    ],
)
def test_plain_values_are_read_as_pyyaml_reads_them(text: str):
    assert parse_yaml(text, "m", error=ConfigError) == yaml.safe_load(text)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(value=VALUES)
def test_what_pyyaml_writes_comes_back(value: object):
    assert parse_yaml(yaml.safe_dump(value), "m", error=ConfigError) == value


def test_file_is_read_if_it_is_small_and_there(tmp_path: Path):
    (tmp_path / "m.yaml").write_text("a: 1")
    assert read_yaml(tmp_path / "m.yaml", error=ConfigError) == {"a": 1}
    with pytest.raises(ConfigError, match=r"none\.yaml: no such file"):
        read_yaml(tmp_path / "none.yaml", error=ConfigError)
    (tmp_path / "m.yaml").write_bytes(b" " * (2**20 + 1))
    with pytest.raises(ConfigError, match="holds more than 1048576 bytes"):
        read_yaml(tmp_path / "m.yaml", error=ConfigError)
