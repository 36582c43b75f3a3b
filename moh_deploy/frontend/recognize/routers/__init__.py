"""Tell which form of router computes a layer's gates.

`forms` asks the matcher of each form in turn (the list is in `moh_deploy.ops.routers`). `program`
is what matchers look at: `router` finds the top-k of any router, and `trial` runs parts of it,
because it does not matter how a router is written, only what it computes. `weighing` finds the
factor, sum and weights behind a ranking.
"""
