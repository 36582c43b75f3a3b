"""Query-norm routing: the heads with the longest queries run, with gates of 1.

It is a mask whose logits are made of the projection that makes the queries: the form of the
language models that were published with arXiv 2410.11842.
"""

from moh_deploy.ops.routers.form import RouterForm

QUERY_NORM = RouterForm("query_norm", "the heads whose queries are the longest, with gates of 1")
