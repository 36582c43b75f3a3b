import os

import pytest

from moh_deploy.perf.environment import Processor


def test_a_system_without_affinity_counts_its_cores(monkeypatch: pytest.MonkeyPatch):
    """As macOS."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert Processor.this(None).num_cores == 7
