import importlib.util

import pytest


@pytest.fixture(scope="session")
def needs_triton() -> None:
    """Skip where Triton is not installed."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("no Triton: pip install 'moh-deploy[build-cuda]'")
