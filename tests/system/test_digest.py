"""The digest of plain JSON types depends on what they say, not on how."""

from __future__ import annotations

from moh_deploy.system.bounded_file import sha256_of_json


def test_order_of_keys_does_not_change_the_digest_and_content_does():
    digest = sha256_of_json({"a": 1, "b": [1, 2]})
    assert digest == sha256_of_json({"b": [1, 2], "a": 1})
    assert digest != sha256_of_json({"a": 1, "b": [2, 1]})
