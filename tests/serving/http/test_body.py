from __future__ import annotations

import pytest

from moh_deploy.serving.http.connection import HeldBytes
from moh_deploy.serving.http.limits import Refusal


def test_one_address_holds_half_of_all_bytes_and_leaves_the_rest_to_others():
    held = HeldBytes(100)
    held.add("a", 50)
    with pytest.raises(Refusal, match=r"holds 50 bytes of requests from your address, of 50 at"):
        held.check("a", 1)
    held.check("b", 50)
    held.add("b", 40)
    with pytest.raises(Refusal, match=r"holds 90 bytes of requests, of 100 at most"):
        held.check("c", 11)
    held.add("a", -50)
    held.check("a", 50)
