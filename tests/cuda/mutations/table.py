"""All planted bugs, and what is left out.

Left out are changes that no result can show:

- In compact.cuh: zeros for open rows, too. The attention kernel runs later and writes over them.
- In rows.cuh: gates of rows behind the last that are open (they are not written either way).
- In attention.cuh: a row that is said to have seen a key in a split that has none of its keys. Its
  largest weight there is still -inf.
- In tile.cuh: rows behind the last that repeat the first. Their scores are hidden.
- In output.cuh: the barrier before rows are staged (the sums over a row's lanes come after the last
  product), and NaN for a row whose scores are all -inf (0 / 0 gives it, too).
- In queries.cuh: the barrier behind the last change of queries. The loop over keys starts with
  another one.
- In aggregated_attention.cuh: the barrier before rows are computed again, which starts with one.
- In router.cuh: eps below the sum of the chosen probabilities, which is at least top_k / R; and 0
  for the numbers behind the last head, which come after every head of the same probability.

and what other tests see: the barrier between the tokens of a warp in router.cuh, which has several
only where there are very many (test_ptx_mutations.py).
"""

from tests.cuda.mutations import (
    aggregated_attention,
    attention,
    attention_keys,
    compact,
    products,
    router,
)
from tests.cuda.mutations.mutation import Mutation

MUTATIONS: tuple[Mutation, ...] = (
    *attention.MUTATIONS,
    *attention_keys.MUTATIONS,
    *compact.MUTATIONS,
    *products.MUTATIONS,
    *aggregated_attention.MUTATIONS,
    *router.MUTATIONS,
)
