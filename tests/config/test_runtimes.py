from __future__ import annotations

from typing import get_args

from moh_deploy.config.dtypes import RUNTIMES, Runtime


def test_every_runtime_has_a_title():
    assert tuple(RUNTIMES) == get_args(Runtime)
