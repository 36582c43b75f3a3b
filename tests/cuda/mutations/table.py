"""All planted bugs, and what is left out.

The bugs are in the text files beside this one, as a patch would have them. A heading names a source
below plugins/cuda, and the lines below it hold for all its bugs:

    # kernels/router.cuh
    op: MoHRouter
    units: router
    cases: two_stage

    ties go to the highest head
    - (j < i && !(own > other))
    + (j > i && !(own > other))
    cases: tied_logits

Each bug has its name, the text before (-) and after (+), and fields of `Mutation` that differ from
those of its source.

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

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.cuda.libraries import ADDRESS, PLAIN, THREAD
from tests.cuda.mutations.mutation import SYMPTOMS, Mutation

_FILES = (
    "attention.txt",  # MoHAttention's kernel
    "attention_keys.txt",  # which keys its rows see: ranges, and masks of keys
    "compact.txt",  # around it: the list of rows, key splits, launches
    "products.txt",  # what all attention kernels are made of: tiles, products, softmax
    "aggregated_attention.txt",
    "router.txt",
)


def _symptom(text: str) -> str:
    return "|".join(SYMPTOMS.get(word, word) for word in text.split(", "))


_READ: dict[str, Callable[[str], Any]] = {
    "units": lambda text: tuple(text.split()),
    "options": lambda text: tuple(text.split()),
    "symptom": _symptom,
    "variant": lambda text: {v.name: v for v in (PLAIN, ADDRESS, THREAD)}[text],
}


def read(text: str) -> Iterator[Mutation]:
    """Yield the bugs of a file."""
    of_source: dict[str, Any] = {}
    for block in text.strip().split("\n\n"):
        heading, *lines = block.splitlines()
        if heading.startswith("# "):
            of_source = {"file": heading.removeprefix("# "), "after": "", **_fields(lines)}
        else:
            yield Mutation(name=heading, **(of_source | _fields(lines)))


def _fields(lines: Sequence[str]) -> dict[str, Any]:
    """Return the texts before and after, and what `key: value` says."""
    fields: dict[str, Any] = {}
    for line in lines:
        if line.startswith(("-", "+")):
            key, value = "before" if line[0] == "-" else "after", line[2:]
            fields[key] = f"{fields[key]}\n{value}" if key in fields else value
        else:
            key, value = line.split(": ", 1)
            fields[key] = _READ.get(key, str)(value)
    return fields


MUTATIONS: tuple[Mutation, ...] = tuple(
    mutation for name in _FILES for mutation in read((Path(__file__).parent / name).read_text())
)
