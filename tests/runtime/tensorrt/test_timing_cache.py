from __future__ import annotations

from pathlib import Path

from moh_deploy.runtime.tensorrt.build_plan import TimingCache

STACK = {"TensorRT": "10.14.1", "plugin library": None, "GPU": "NVIDIA L4"}


def test_times_are_read_on_the_same_stack(tmp_path: Path):
    cache = TimingCache(tmp_path / "times", STACK)
    assert cache.read() is None
    assert cache.why_ignored() is None
    cache.write(b"a\nb\0")
    assert TimingCache(tmp_path / "times", dict(STACK)).read() == b"a\nb\0"


def test_times_of_another_stack_are_ignored_with_the_difference(tmp_path: Path):
    TimingCache(tmp_path / "times", STACK).write(b"times")
    here = TimingCache(tmp_path / "times", STACK | {"GPU": "NVIDIA A10", "TensorRT": "10.15.0"})
    assert here.read() is None
    assert here.why_ignored() == (
        "it was measured with TensorRT 10.14.1, here 10.15.0; GPU NVIDIA L4, here NVIDIA A10"
    )


def test_a_file_of_somebody_else_is_ignored(tmp_path: Path):
    for content in (b"", b"\0\1\2", b"{}\n", b'{"kind": "other", "stack": {}}\n', b"[1]\n"):
        (tmp_path / "times").write_bytes(content)
        cache = TimingCache(tmp_path / "times", STACK)
        assert cache.read() is None
        assert cache.why_ignored() == "it is not a timing cache of moh-deploy"
