"""A router's case in which warps take several tokens each."""

from tests.plugins.router_setups import RouterSetup

MOST_WARPS = 2048 * 8
"""Of a launch: plugins/cuda/launch/router.cu."""

MANY_TOKENS = RouterSetup(
    seq_len=MOST_WARPS + 100, num_routed=5, num_shared=0, shared_logits=False, staged=False
).case()
