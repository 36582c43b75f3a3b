from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from moh_deploy.errors import PackageError
from moh_deploy.serving.triton.config_pbtxt import config_class, parse_config
from tests.nightly import nightly
from tests.serving.triton.triton_environment import python_or_skip


def test_every_form_that_people_write_is_read():
    text = """
    # a comment
    name: "a" 'b'   ; backend: "python",
    max_batch_size: 0x10
    input [ { name: "x" dims: [ 1, -1 ] }, { name: "y" } ]
    instance_group < count: 2 kind: KIND_CPU >
    optimization { eager_batching: true }
    """
    config = parse_config(text)
    assert (config.name, config.backend, config.max_batch_size) == ("ab", "python", 16)
    assert [(tensor.name, list(tensor.dims)) for tensor in config.input] == [
        ("x", [1, -1]),
        ("y", []),
    ]
    (group,) = config.instance_group
    assert (
        group == config_class()(instance_group=[{"count": 2, "kind": "KIND_CPU"}]).instance_group[0]
    )
    assert config.optimization.eager_batching


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: 'x'\ninput {", 'line 2, column 7: Expected "}"'),
        ("name 'x'", """line 1, column 6: 'name 'x'': Expected ":\""""),
        ("\n\nname: @", "line 3, column 7"),
        ("max_batch_size: 08", "line 1, column 17: 'max_batch_size: 08': Couldn't parse integer"),
        (
            "name: 'x' model_operations {\n  op_library: 'x'\n}",
            'line 2, column 3: Message type "triton.Operations" has no field named "op_library"',
        ),
        ("instance_group { kind: KIND_TPU }", "has no value named KIND_TPU"),
        ("max_batch_size: 1 max_batch_size: 2", 'should not have multiple "max_batch_size"'),
        ("parameters {" * 3000, 'has no field named "parameters"'),
    ],
)
def test_error_names_line_and_column(text: str, message: str):
    with pytest.raises(PackageError) as error:
        parse_config(text)
    assert message in error.value.message
    assert len(error.value.message) < 400


TRITONS_OWN = """
import json, sys
from tritonclient.grpc import model_config_pb2

def fields(message, seen=()):
    for field in message.fields:
        yield [*seen, field.name], field.cpp_type, field.is_repeated, [
            value.name for value in field.enum_type.values] if field.enum_type else []
        if field.message_type:
            yield from fields(field.message_type, (*seen, field.name))

json.dump(sorted(fields(model_config_pb2.ModelConfig.DESCRIPTOR)), sys.stdout)
"""


@nightly
def test_table_has_the_names_and_types_of_tritons_own_descriptor():
    ran = subprocess.run(
        [python_or_skip(), "-c", TRITONS_OWN], capture_output=True, text=True, check=True
    )
    own = json.loads(json.dumps(sorted(fields(config_class().DESCRIPTOR))))
    assert own == json.loads(ran.stdout)


def fields(message: Any, seen: tuple[str, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of each field, its type, whether it is repeated, and its enum's names."""
    for field in message.fields:
        names = [value.name for value in field.enum_type.values] if field.enum_type else []
        yield [*seen, field.name], field.cpp_type, field.is_repeated, names
        if field.message_type:
            yield from fields(field.message_type, (*seen, field.name))
