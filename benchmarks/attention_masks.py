"""MoHAttention under masks against its own causal form: what a kernel may leave out, and what it
costs to find that out.

All forms take turns in one process, on the same queries, keys, values and gates; some rows of each
output are compared with float64. On one thread CPU time counts, on several wall time. With
`--beside LIBRARY` another library of kernels takes its turns, too.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from interleaving import Call, interleaved_figures
from op_timing import WrongOutput, check_error
from ort_session import Unusable, kernel_session
from printing import environment, print_results, versions
from process_cost import load_average
from rich.table import Table
from run_options import add_run_options, fraction, kernels_or_exit

from moh_deploy.errors import MoHDeployError
from moh_deploy.ops.onnx_schema import single_node_model
from moh_deploy.ops.spec import TensorType
from moh_deploy.runtime.kernel_use import KernelUse, require_kernels
from moh_deploy.runtime.onnxruntime.values import from_ort, to_ort

PACKAGES = ("moh-deploy", "onnxruntime")
# Largest difference from float64, where outputs are of order 1.
BOUND = 1e-5
LOWEST = float(np.finfo(np.float32).min)
CHECKED_QUERIES = 16


@dataclass(frozen=True)
class Shape:
    tokens: int
    heads: int
    kv_heads: int
    head_dim: int

    @property
    def name(self) -> str:
        return f"{self.tokens}, {self.heads} on {self.kv_heads} of {self.head_dim}"


@dataclass(frozen=True)
class Form:
    """A way to say which keys are seen.

    Attributes:
        is_causal: The attribute.
        mask: Of attn_mask, made from the positions of queries [S, 1] and keys [T].
        ranges: Of key_ranges: first and end, made from the positions of queries [S].
        added: What the mask adds where it is false; None: it stays one of bools.
        slopes: Each head adds another share of the distance, as ALiBi does.
    """

    is_causal: bool = False
    mask: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None
    ranges: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]] | None = None
    added: float | None = None
    slopes: bool = False

    def attn_mask(self, shape: Shape) -> np.ndarray | None:
        """Return the mask, without a query axis where it does not depend on the query."""
        if self.mask is None:
            return None
        query, key = np.arange(shape.tokens)[:, None], np.arange(shape.tokens)
        seen = np.atleast_2d(self.mask(query, key))[None, None]
        if self.added is None:
            return seen
        mask = np.where(seen, 0, self.added).astype(np.float32)
        if not self.slopes:
            return mask
        slopes = 2.0 ** -np.arange(1, shape.heads + 1, dtype=np.float32)[:, None, None]
        return np.where(seen, -slopes * np.abs(query - key).astype(np.float32), mask)

    def key_ranges(self, shape: Shape) -> np.ndarray | None:
        if self.ranges is None:
            return None
        return np.stack(self.ranges(np.arange(shape.tokens)), axis=-1)[None].astype(np.int64)

    def bias(self, shape: Shape, query: np.ndarray) -> np.ndarray:
        """Return what is added to the scores of the first head [queries, T], in float64."""
        bias, key = np.zeros((len(query), shape.tokens)), np.arange(shape.tokens)
        mask, ranges = self.attn_mask(shape), self.key_ranges(shape)
        if self.is_causal:
            bias[key > query[:, None]] = -np.inf
        if ranges is not None:
            first, end = ranges[0, query].T[:, :, None]
            bias[(key < first) | (key >= end)] = -np.inf
        if mask is not None:
            own = np.broadcast_to(mask[0, 0], (shape.tokens, shape.tokens))[query]
            bias += np.where(own, 0.0, -np.inf) if mask.dtype == bool else own
        return bias


def _causal(query: np.ndarray, key: np.ndarray) -> np.ndarray:
    return key <= query


def _window(query: np.ndarray, key: np.ndarray) -> np.ndarray:
    return (key <= query) & (key > query - 128)


def _no_first(query: np.ndarray, key: np.ndarray) -> np.ndarray:
    return key >= len(key) // 8


def _no_last(query: np.ndarray, key: np.ndarray) -> np.ndarray:
    return key < len(key) - len(key) // 8


SHAPES = (
    Shape(512, 8, 2, 64),
    Shape(512, 32, 8, 128),
    Shape(1024, 16, 4, 64),
    Shape(2048, 32, 8, 128),
)
CAUSAL = "is_causal"
FORMS = {
    CAUSAL: Form(is_causal=True),
    "no mask": Form(),
    "causal, bool": Form(mask=_causal),
    "causal, lowest": Form(mask=_causal, added=LOWEST),
    "causal, -10000": Form(mask=_causal, added=-1e4),
    "is_causal, [1, 1, 1, T] bool, left padding": Form(is_causal=True, mask=_no_first),
    "is_causal, [1, 1, 1, T] bool, right padding": Form(is_causal=True, mask=_no_last),
    "[1, 1, 1, T] bool, right padding": Form(mask=_no_last),
    "causal and left padding, lowest": Form(
        mask=lambda query, key: _causal(query, key) & _no_first(query, key), added=LOWEST
    ),
    "window of 128, key_ranges": Form(ranges=lambda query: (query - 127, query + 1)),
    "window of 128, bool": Form(mask=_window),
    "window of 128, lowest": Form(mask=_window, added=LOWEST),
    "128 and the first 4 keys, bool": Form(
        mask=lambda query, key: _window(query, key) | (_causal(query, key) & (key < 4))
    ),
    "slopes of each head, causal, lowest": Form(mask=_causal, added=LOWEST, slopes=True),
}


@dataclass(frozen=True)
class Row:
    """The times of one form of mask.

    Attributes:
        open_share: Of the gates.
        ms: CPU time, median, on one thread; wall time, minimum, on several.
        ratio: To the causal form of the same library.
        beside_ms, beside_ratio: The same of the other library; None where it has no key_ranges.
        max_abs_error: From float64, of some rows.
    """

    shape: str
    open_share: float
    form: str
    threads: int
    ms: float
    ratio: float
    beside_ms: float | None
    beside_ratio: float | None
    max_abs_error: float


@dataclass(frozen=True)
class Subject:
    """A form on a library, ready to run."""

    form: str
    library: int
    call: Call
    output: object
    inputs: object  # live as long as the call


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    start_load = load_average()
    try:
        rows = [
            row
            for shape in options.shapes
            for share in options.open
            for threads in options.threads
            for row in _measure(shape, share, threads, options)
        ]
    except (MoHDeployError, Unusable, WrongOutput) as failure:
        print(failure, file=sys.stderr)
        return 1
    about = {
        **environment(start_load),
        "kernels": options.kernels[0].describe(),
        **versions(PACKAGES),
    }
    lines = [asdict(row) for row in rows]
    print_results(about, lines, [_table(rows)], as_json=options.json, width=130)
    return 0


def _measure(shape: Shape, share: float, threads: int, options: argparse.Namespace) -> list[Row]:
    print(f"{shape.name}, open: {share:g}, threads: {threads}", file=sys.stderr)
    tensors = _tensors(shape, share)
    subjects, errors = [], {}
    for name in options.forms:
        for library, kernels in enumerate(options.kernels):
            if library > 0 and FORMS[name].ranges is not None:
                continue
            subject = _subject(name, library, shape, tensors, kernels, threads)
            error = _error(subject, shape, tensors)
            errors[name] = max(errors.get(name, 0.0), error)
            subjects.append(subject)
    calls = [subject.call for subject in subjects]
    figures = interleaved_figures(calls, threads=threads, rounds=options.rounds)
    ms = {(s.form, s.library): figure for s, figure in zip(subjects, figures, strict=True)}
    rows = []
    for name in options.forms:
        beside = ms.get((name, 1))
        rows.append(
            Row(
                shape.name,
                share,
                name,
                threads,
                ms[name, 0],
                ms[name, 0] / ms[CAUSAL, 0],
                beside,
                None if beside is None else beside / ms[CAUSAL, 1],
                errors[name],
            )
        )
    return rows


def _tensors(shape: Shape, share: float) -> dict[str, np.ndarray]:
    """Return Q, K, V and gates, with the same number open for each token."""
    rng = np.random.default_rng(0)
    heads = {"Q": shape.heads, "K": shape.kv_heads, "V": shape.kv_heads}
    tensors = {
        name: rng.standard_normal((1, shape.tokens, count * shape.head_dim), dtype=np.float32)
        for name, count in heads.items()
    }
    gates = np.zeros((1, shape.tokens, shape.heads), np.float32)
    gates[..., : round(shape.heads * share)] = 1.0
    tensors["gates"] = rng.permuted(gates, axis=-1)
    return tensors


def _subject(
    name: str,
    library: int,
    shape: Shape,
    tensors: dict[str, np.ndarray],
    kernels: KernelUse,
    threads: int,
) -> Subject:
    form = FORMS[name]
    mask, ranges = form.attn_mask(shape), form.key_ranges(shape)
    optional = {"attn_mask": mask, "nonpad_kv_seqlen": None, "key_ranges": ranges}
    while optional and list(optional.values())[-1] is None:
        optional.popitem()
    arrays = {**tensors, **optional}
    types = [
        None if array is None else TensorType(array.dtype.name, array.shape)
        for array in arrays.values()
    ]
    attributes = {
        "q_num_heads": shape.heads,
        "kv_num_heads": shape.kv_heads,
        "scale": shape.head_dim**-0.5,
        "is_causal": int(form.is_causal),
    }
    model = single_node_model("MoHAttention", types, attributes)
    model.graph.node[0].name = "attention"
    session, impl = kernel_session(
        model.SerializeToString(), ["attention"], kernels, threads=threads
    )
    require_kernels(kernels, impl)
    output = to_ort(np.full(tensors["Q"].shape, np.nan, np.float32))
    binding = session.io_binding()
    values = {name: to_ort(array) for name, array in arrays.items() if array is not None}
    for input_name, value in values.items():
        binding.bind_ortvalue_input(input_name, value)
    binding.bind_ortvalue_output("Y", output)
    return Subject(
        name, library, lambda: session.run_with_iobinding(binding), output, (arrays, values)
    )


def _error(subject: Subject, shape: Shape, tensors: dict[str, np.ndarray]) -> float:
    """Run it, and return how far some rows of the first head are from float64.

    Raises:
        WrongOutput: Too far.
    """
    subject.call()
    query = np.linspace(0, shape.tokens - 1, CHECKED_QUERIES).astype(int)
    first = {name: tensors[name][0, :, : shape.head_dim].astype(np.float64) for name in "QKV"}
    scores = first["Q"][query] @ first["K"].T * shape.head_dim**-0.5
    scores += FORMS[subject.form].bias(shape, query)
    with np.errstate(invalid="ignore"):  # a row that sees nothing
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        expected = np.nan_to_num(weights / weights.sum(axis=-1, keepdims=True)) @ first["V"]
    expected *= tensors["gates"][0, query, :1]
    got = from_ort(subject.output)[0, query, : shape.head_dim]
    return check_error(subject.form, float(np.abs(got - expected).max()), BOUND)


def _table(rows: Sequence[Row]) -> Table:
    table = Table(
        title="CPU time on one thread (medians), wall time on several (minima); ratio to is_causal",
        title_justify="left",
    )
    for heading in ("shape", "open", "form", "threads", "ms", "ratio", "beside, ms", "ratio"):
        table.add_column(heading, justify="left" if heading == "form" else "right", no_wrap=True)
    for row in rows:
        beside = ("", "")
        if row.beside_ms is not None:
            beside = (f"{row.beside_ms:.3g}", f"{row.beside_ratio:.2f}")
        times = (f"{row.ms:.3g}", f"{row.ratio:.2f}", *beside)
        table.add_row(row.shape, f"{row.open_share:g}", row.form, str(row.threads), *times)
    return table


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add(
        "--shapes",
        nargs="+",
        type=int,
        default=[*range(len(SHAPES))],
        metavar="N",
        help="; ".join(f"{i}: {shape.name}" for i, shape in enumerate(SHAPES)),
    )
    add("--open", nargs="+", type=fraction, default=[1.0, 0.5], metavar="SHARE")
    add(
        "--forms", nargs="+", choices=FORMS, default=[*FORMS], metavar="FORM", help="; ".join(FORMS)
    )
    add("--beside", type=Path, metavar="LIBRARY", help="kernels that take their turns, too")
    add_run_options(parser, threads=[1], rounds=7)
    options = parser.parse_args(arguments)
    options.shapes = [SHAPES[i] for i in options.shapes]
    options.forms = [CAUSAL, *(form for form in options.forms if form != CAUSAL)]
    options.kernels = [kernels_or_exit(parser, "require", options.library)]
    if options.beside is not None:
        options.kernels.append(kernels_or_exit(parser, "require", options.beside))
    return options


if __name__ == "__main__":
    sys.exit(main())
