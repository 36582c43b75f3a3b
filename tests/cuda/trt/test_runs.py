"""What a plugin calls when it runs: arguments, workspace, tactics, failures."""

from dataclasses import replace

import numpy as np
import pytest

from moh_deploy.ops import OPS
from moh_deploy.ops.cases import Case
from tests.cuda import abi
from tests.cuda.trt.case_runs import CaseRun
from tests.cuda.trt.fakes import Kernels
from tests.cuda.trt.host_plugin import RUNTIME, Harness, Plugin, Tensor
from tests.nightly import sampled
from tests.ops.cases import OP_CASES, named_case

SPARSE, DENSE, SPARSE_BY_TRITON, DENSE_BY_TRITON = 1, 2, 3, 4  # as TensorRT counts tactics


def _case(op: str, name: str, dtype: str = "float16") -> Case:
    return named_case(op, name, dtype)


def _ready(harness: Harness, case: Case, *, phase: int = RUNTIME) -> tuple[Plugin, CaseRun]:
    run = CaseRun(case)
    plugin = harness.create(case.op, run.fields, phase=phase, layer="l")
    assert plugin.on_shape_change(run.tensors), harness.log()
    return plugin, run


def _enqueue(plugin: Plugin, run: CaseRun) -> tuple[np.ndarray, np.ndarray]:
    output = np.zeros(run.tensors[-1].opt, np.float16)
    workspace = np.zeros(1 << 16, np.uint8)
    assert plugin.enqueue(run.inputs, output, workspace)
    return output, workspace


def test_a_router_is_called_with_its_logits(harness: Harness, kernels: Kernels):
    plugin, run = _ready(harness, _case("MoHRouter", "two_stage"))
    output, _ = _enqueue(plugin, run)
    ((name, args),) = kernels.calls
    batch, length, routed = run.inputs[0].shape
    assert name == "router"
    assert args["counts"] is None
    pointers = [args[f"{kind}_logits"] for kind in ("routed", "shared", "stage")]
    assert pointers == [array.ctypes.data for array in run.inputs]
    assert args["gates"] == output.ctypes.data
    assert (args["tokens"], args["routed"]) == (batch * length, routed)
    assert args["dtype"] == abi.DTYPES["float16"]
    assert args["shared"] == run.case.attributes["num_shared_heads"]
    assert args["top_k"] == run.case.attributes["top_k"]
    assert args["mask_only"] is False


def test_absent_inputs_are_null(harness: Harness, kernels: Kernels):
    plugin, run = _ready(harness, _case("MoHAggregatedAttention", "window_bias_only"))
    _enqueue(plugin, run)
    ((_, args),) = kernels.calls
    given = {"query", "key", "value", "pooled_key", "pooled_value", "gates", "window_bias"}
    null = {name for name in abi.AGGREGATED_POINTERS if args[name] is None}
    assert null == set(abi.AGGREGATED_POINTERS) - given - {"output"}
    assert args["window_bias"] == run.inputs[-1].ctypes.data


ATTENTION = [c for c in OP_CASES["MoHAttention"] if c.dtype == "float16"]
AGGREGATED = [c for c in OP_CASES["MoHAggregatedAttention"] if c.dtype == "float16"]


def _places(array: np.ndarray, heads: int) -> np.ndarray:
    """Where each element of [B, T, H*D] or [B, H, T, D] is in memory, as [B, H, T, D]."""
    places = np.arange(array.size).reshape(array.shape)
    if array.ndim == 4:
        return places
    batch, length, hidden = array.shape
    return places.reshape(batch, length, heads, hidden // heads).transpose(0, 2, 1, 3)


def _reached(strides: dict[str, int], shape: tuple[int, ...]) -> np.ndarray:
    batch, head, token, feature = np.indices(shape)
    return batch * strides["batch"] + head * strides["head"] + token * strides["token"] + feature


@sampled(4)
@pytest.mark.parametrize("case", ATTENTION, ids=str)
def test_an_attention_is_called_with_its_sizes_and_strides(
    harness: Harness, kernels: Kernels, case: Case
):
    plugin, run = _ready(harness, case)
    output, _ = _enqueue(plugin, run)
    ((_, args),) = kernels.calls
    q_heads, kv_heads = case.attributes["q_num_heads"], case.attributes["kv_num_heads"]
    tensors = {"query": (run.inputs[0], q_heads), "key": (run.inputs[1], kv_heads)}
    tensors |= {"value": (run.inputs[2], kv_heads), "output": (output, q_heads)}
    for name, (array, heads) in tensors.items():
        places = _places(array, heads)
        reached = _reached(args[f"{name}_strides"], places.shape)
        np.testing.assert_array_equal(reached, places, name)
        assert args[name] == array.ctypes.data
    batch, _, queries, head_dim = _places(run.inputs[0], q_heads).shape
    assert (args["batch"], args["queries"], args["head_dim"]) == (batch, queries, head_dim)
    assert (args["keys"], args["value_dim"]) == _places(run.inputs[2], kv_heads).shape[2:]
    assert (args["q_heads"], args["kv_heads"]) == (q_heads, kv_heads)
    assert args["scale"] == pytest.approx(case.attributes["scale"])
    assert args["causal"] == bool(case.attributes["is_causal"])


MASKED = [c for c in ATTENTION if dict(CaseRun(c).given).get(4, np.empty(0)).size]
FILLED = [c for c in ATTENTION if 5 in dict(CaseRun(c).given)]
RANGES = [c for c in ATTENTION if 6 in dict(CaseRun(c).given)]


@pytest.mark.parametrize("case", MASKED, ids=str)
def test_mask_strides_reach_the_element_that_broadcasting_means(
    harness: Harness, kernels: Kernels, case: Case
):
    plugin, run = _ready(harness, case)
    _enqueue(plugin, run)
    ((_, args),) = kernels.calls
    mask = run.inputs[4]
    scores = (args["batch"], args["q_heads"], args["queries"], args["keys"])
    meant = np.broadcast_to(np.arange(mask.size).reshape(mask.shape), scores)
    strides = [args["mask"][axis] for axis in ("batch", "head", "query", "key")]
    np.testing.assert_array_equal(np.tensordot(strides, np.indices(scores), axes=1), meant)
    assert args["mask"]["data"] == mask.ctypes.data
    assert args["mask"]["dtype"] == abi.DTYPES[mask.dtype.name]


@pytest.mark.parametrize("case", FILLED, ids=str)
def test_lengths_reach_the_kernels_unread(harness: Harness, kernels: Kernels, case: Case):
    plugin, run = _ready(harness, case)
    _enqueue(plugin, run)
    ((_, args),) = kernels.calls
    assert args["nonpad_kv_seqlen"] == dict(run.given)[5].ctypes.data


@pytest.mark.parametrize("case", RANGES, ids=str)
def test_ranges_reach_the_kernels_unread(harness: Harness, kernels: Kernels, case: Case):
    plugin, run = _ready(harness, case)
    _enqueue(plugin, run)
    ((_, args),) = kernels.calls
    ranges = dict(run.given)[6]
    assert args["key_ranges"] == ranges.ctypes.data
    assert args["key_ranges_batch"] == (ranges[0].size if len(ranges) > 1 else 0)


def test_while_measured_every_key_is_seen(harness: Harness, kernels: Kernels):
    """What TensorRT has in place of masks, lengths and ranges means nothing."""
    case = _case("MoHAttention", "ranges_filled_causal_bool_mask")
    plugin, run = _ready(harness, case, phase=0)
    _enqueue(plugin, run)
    args = kernels.calls[-1][1]
    assert (args["mask"]["data"], args["nonpad_kv_seqlen"], args["key_ranges"]) == (None,) * 3
    _enqueue(plugin.attach(), run)
    assert kernels.calls[-1][1]["nonpad_kv_seqlen"] == run.inputs[5].ctypes.data


@sampled(4)
@pytest.mark.parametrize("case", AGGREGATED, ids=str)
def test_an_aggregated_attention_is_called_with_its_sizes(
    harness: Harness, kernels: Kernels, case: Case
):
    plugin, run = _ready(harness, case)
    output, _ = _enqueue(plugin, run)
    ((_, args),) = kernels.calls
    inputs = [None if a is None else a.ctypes.data for a in _in_order(run)]
    assert [args[name] for name in abi.AGGREGATED_POINTERS] == [*inputs, output.ctypes.data]
    attributes = case.attributes
    for name in ("height", "width", "kernel_height", "kernel_width"):
        assert args[name] == attributes[name]
    assert args["normalize"] == bool(attributes["normalize"])
    assert args["epsilon"] == pytest.approx(attributes["epsilon"])
    heads = attributes["num_heads"]
    assert (args["batch"], args["heads"]) == (output.shape[0], heads)
    assert (args["head_dim"], args["pooled"]) == (output.shape[2] // heads, run.inputs[3].shape[1])


def _in_order(run: CaseRun) -> list[np.ndarray | None]:
    """All inputs of the op, None for those that are absent."""
    given = dict(run.given)
    return [given.get(i) for i in range(len(OPS[run.case.op].inputs))]


def test_nothing_runs_before_a_shape_is_known(harness: Harness, kernels: Kernels):
    run = CaseRun(_case("MoHRouter", "two_stage"))
    plugin = harness.create("MoHRouter", run.fields, layer="l")
    assert not plugin.enqueue(run.inputs, np.zeros(1000, np.float16))
    assert "E MoHRouter (l): enqueue without a shape" in harness.log()
    assert kernels.calls == []


def test_nothing_runs_after_a_shape_was_refused(harness: Harness, kernels: Kernels):
    plugin, run = _ready(harness, _case("MoHRouter", "two_stage"))
    wrong = [replace(run.tensors[0], opt=(1, 1)), *run.tensors[1:]]
    assert not plugin.on_shape_change(wrong)
    assert not plugin.enqueue(run.inputs, np.zeros(1000, np.float16))
    assert kernels.calls == []


@pytest.mark.parametrize(
    ("op", "case"),
    [
        ("MoHRouter", "two_stage"),
        ("MoHAttention", "plain_rank3"),
        ("MoHAggregatedAttention", "plain"),
    ],
)
def test_a_failure_of_the_kernels_is_returned_and_logged(
    harness: Harness, kernels: Kernels, op: str, case: str
):
    plugin, run = _ready(harness, _case(op, case))
    kernels.status, kernels.error = 4, f"{op}: the launch failed with cudaError_t 700."
    output, workspace = np.zeros(run.tensors[-1].opt, np.float16), np.zeros(1 << 16, np.uint8)
    assert not plugin.enqueue(run.inputs, output, workspace)
    assert harness.log() == f"E {op} (l): the launch failed with cudaError_t 700.\n"


# ---- workspace and tactics of MoHAttention


def _tensors(queries: tuple[int, int, int], keys: int = 2048, batch: int = 1) -> list[Tensor]:
    """Q, K, V, gates and Y of 4 heads that share 2, from min to max queries."""

    def sized(length: int | None, width: int) -> Tensor:
        shapes = [(batch, length or each, width) for each in queries]
        return Tensor("float16", opt=shapes[1], min=shapes[0], max=shapes[2])

    return [sized(None, 256), sized(keys, 128), sized(keys, 128), sized(None, 4), sized(None, 256)]


def _attention(harness: Harness, *, phase: int, **fields: float) -> Plugin:
    given = {"q_num_heads": 4, "kv_num_heads": 2, "scale": 0.125, "is_causal": 0, **fields}
    return harness.create("MoHAttention", given, phase=phase, layer="l")


@pytest.mark.parametrize(
    ("has_triton", "fields", "tactics"),
    [
        (False, {}, [SPARSE, DENSE]),
        (True, {}, [SPARSE, DENSE, SPARSE_BY_TRITON, DENSE_BY_TRITON]),
        (True, {"portable": 1}, [SPARSE, DENSE]),  # an engine for other GPUs, too
    ],
)
def test_tactics_of_every_kernel_that_runs_there_are_offered(
    harness: Harness, kernels: Kernels, has_triton: bool, fields: dict, tactics: list[int]
):
    kernels.has_triton = has_triton
    plugin = _attention(harness, phase=0, **fields)
    assert plugin.configure(_tensors((1, 100, 2000)))
    assert plugin.tactics() == tactics
    assert plugin.serialize()["portable"] == fields.get("portable", 0)


@pytest.mark.parametrize(("most", "tactics"), [(32, [DENSE]), (33, [SPARSE, DENSE])])
def test_one_tactic_is_offered_where_one_tile_has_all_rows(
    harness: Harness, kernels: Kernels, most: int, tactics: list[int]
):
    """2 heads share each key head: 32 queries are 64 rows, one tile."""
    kernels.choose = lambda queries: (1, 4)
    plugin = _attention(harness, phase=0)
    assert plugin.configure(_tensors((1, 1, most)))
    assert plugin.tactics() == tactics


@pytest.mark.parametrize("op", ["MoHRouter", "MoHAggregatedAttention"])
def test_others_have_no_tactics(harness: Harness, kernels: Kernels, op: str):
    plugin, run = _ready(harness, _case(op, "two_stage" if op == "MoHRouter" else "plain"))
    assert plugin.configure(run.tensors)
    assert plugin.tactics() == []
    assert plugin.workspace_bytes(run.tensors) == 0


@pytest.mark.parametrize(("tactic", "ran"), [(0, 0), (SPARSE, 0), (DENSE, 1)])
@pytest.mark.parametrize("tactic_first", [False, True])
def test_the_tactic_that_is_set_runs(
    harness: Harness, kernels: Kernels, tactic: int, ran: int, tactic_first: bool
):
    plugin, run = _ready(harness, _case("MoHAttention", "plain_rank3"))
    if tactic_first:
        plugin = harness.create("MoHAttention", run.fields, phase=RUNTIME)
        assert plugin.set_tactic(tactic)
        assert plugin.on_shape_change(run.tensors)
    else:
        assert plugin.set_tactic(tactic)
    _enqueue(plugin.clone(), run)
    assert kernels.calls[-1][1]["tactic"] == ran


def test_a_tactic_that_does_not_exist_is_refused(harness: Harness, kernels: Kernels):
    plugin, _ = _ready(harness, _case("MoHAttention", "plain_rank3"))
    assert not plugin.set_tactic(5)
    assert harness.log() == "E MoHAttention (l): tactic is 5; expected 0 to 4.\n"


@pytest.mark.parametrize(
    ("tactic", "ran"),
    [(SPARSE_BY_TRITON, (0, 1, 1)), (DENSE_BY_TRITON, (1, 1, 1)), (DENSE, (1, 9, 0))],
)
def test_the_kernel_of_the_tactic_runs(
    harness: Harness, kernels: Kernels, tactic: int, ran: tuple[int, int, int]
):
    kernels.has_triton = True
    kernels.choose = lambda queries: (0, 9)
    plugin, run = _ready(harness, _case("MoHAttention", "plain_rank3"))
    assert plugin.set_tactic(tactic)
    _enqueue(plugin, run)
    call = kernels.calls[-1][1]
    assert (call["tactic"], call["key_splits"], call["kernel"]) == ran


def test_an_engine_is_refused_whose_kernel_the_library_lacks(harness: Harness, kernels: Kernels):
    kernels.error = "MoHAttention: kernel 1 (Triton) was chosen, but there is none."
    plugin, _ = _ready(harness, _case("MoHAttention", "plain_rank3"))
    assert not plugin.set_tactic(SPARSE_BY_TRITON)
    assert "kernel 1 (Triton) was chosen, but there is none" in harness.log()


def test_workspace_is_enough_for_every_tactic_and_end_of_the_range(
    harness: Harness, kernels: Kernels
):
    kernels.choose = lambda queries: (0, 100 if queries == 1 else 1)
    kernels.workspace = lambda args, choice: choice.key_splits * 1000 + args.queries
    tensors = _tensors((1, 16, 2000))
    plugin = _attention(harness, phase=0)
    assert plugin.configure(tensors)
    kernels_need, gates = 100 * 1000 + 1, 2000 * 4 * 2
    assert kernels_need + gates <= plugin.workspace_bytes(tensors) < kernels_need + gates + 1024
    kept = plugin.serialize()["workspace_kib"] * 1024
    assert kept == plugin.workspace_bytes(tensors)  # or more parts than fit could be allowed


def test_without_a_gpu_workspace_is_enough_for_the_largest(harness: Harness, kernels: Kernels):
    kernels.multiprocessors = 0
    assert _attention(harness, phase=0).configure(_tensors((1, 16, 2000)))
    assert set(kernels.devices) == {192}
    kernels.multiprocessors = 7
    assert _attention(harness, phase=0).configure(_tensors((1, 16, 2000)))
    assert kernels.devices[-1] == 7


def test_keys_are_split_into_fewer_parts_where_the_workspace_is_small(
    harness: Harness, kernels: Kernels
):
    """Sizes within the range may ask for more parts than its ends."""
    kernels.choose = lambda queries: (0, 16)
    kernels.workspace = lambda args, choice: choice.key_splits * 1024
    plugin = _attention(harness, phase=RUNTIME, workspace_kib=5)
    tensors = _tensors((1, 1, 1))
    assert plugin.on_shape_change(tensors), harness.log()
    arrays = [np.zeros(t.opt, np.float16) for t in tensors]
    assert plugin.enqueue(arrays[:-1], arrays[-1], np.zeros(1 << 16, np.uint8))
    args = kernels.calls[-1][1]
    assert (args["key_splits"], args["workspace_bytes"]) == (4, 4096)


def test_a_shape_beyond_the_workspace_is_refused(harness: Harness, kernels: Kernels):
    kernels.workspace = lambda args, choice: 5000
    plugin = _attention(harness, phase=RUNTIME, workspace_kib=3)
    assert not plugin.on_shape_change(_tensors((1, 1, 1)))
    assert "workspace is 3 KiB; this shape needs 6. Is it within the profile?" in harness.log()


# ---- gates while TensorRT measures


def test_while_measured_gates_are_those_of_the_stated_share(harness: Harness, kernels: Kernels):
    case = _case("MoHAttention", "plain_rank3")
    run = CaseRun(case)
    plugin = harness.create("MoHAttention", {**run.fields, "open_share": 0.5}, phase=0)
    assert plugin.on_shape_change(run.tensors)
    _, workspace = _enqueue(plugin.clone(), run)
    (_, made), (name, args) = kernels.calls
    assert set(kernels.open_shares) == {0.5}
    assert (made["open_share"], made["count"]) == (0.5, run.inputs[3].size)
    assert made["dtype"] == abi.DTYPES["float16"]
    assert name == "attention"
    assert args["gates"] == made["gates"] != run.inputs[3].ctypes.data
    # Behind what the kernels use, within what was asked for.
    start = made["gates"] - workspace.ctypes.data
    assert start == 1024 >= args["workspace_bytes"] == 1000
    assert start + made["count"] * 2 <= plugin.workspace_bytes(run.tensors)


@pytest.mark.parametrize("attached", [False, True])
def test_results_are_of_the_real_gates(harness: Harness, kernels: Kernels, attached: bool):
    """At run time, and whenever a context wants results of a plugin made for building."""
    plugin, run = _ready(
        harness, _case("MoHAttention", "plain_rank3"), phase=0 if attached else RUNTIME
    )
    _enqueue(plugin.attach() if attached else plugin, run)
    ((name, args),) = kernels.calls
    assert name == "attention"
    assert args["gates"] == run.inputs[3].ctypes.data


TIMED = "I MoHAttention (l): timed with 0.5 of all gates open, not with its input.\n"


def test_gates_that_are_replaced_are_told_once(harness: Harness, kernels: Kernels):
    """Of a plugin and all clones that TensorRT makes of it, for each tactic and each run."""
    run = CaseRun(_case("MoHAttention", "plain_rank3"))
    fields = {**run.fields, "open_share": 0.5}
    plugin = harness.create("MoHAttention", fields, phase=0, layer="l")
    assert plugin.on_shape_change(run.tensors)
    assert harness.log() == ""
    _enqueue(plugin, run)
    assert harness.log() == TIMED
    clone = plugin.clone()
    _enqueue(clone, run)
    _enqueue(plugin, run)
    _enqueue(plugin.attach(), run)
    assert harness.log() == ""


@pytest.mark.parametrize(("op", "phase"), [("MoHAttention", RUNTIME), ("MoHRouter", 0)])
def test_nothing_is_told_where_nothing_is_replaced(
    harness: Harness, kernels: Kernels, op: str, phase: int
):
    case = "plain_rank3" if op == "MoHAttention" else "two_stage"
    plugin, run = _ready(harness, _case(op, case), phase=phase)
    _enqueue(plugin, run)
    assert harness.log() == ""


# ---- what is done before a run, once


def test_the_device_is_asked_once_for_all_shapes(harness: Harness, kernels: Kernels):
    plugin, run = _ready(harness, _case("MoHAttention", "plain_rank3"))
    assert kernels.device_calls == 1
    clone = plugin.clone()
    for item in (plugin, clone):
        assert item.on_shape_change(run.tensors)
        assert item.set_tactic(DENSE)
    assert kernels.device_calls == 1


@pytest.mark.parametrize(
    ("op", "case", "phase", "loads"),
    [
        ("MoHRouter", "two_stage", RUNTIME, 1),
        ("MoHAttention", "plain_rank3", RUNTIME, 1),
        ("MoHAttention", "plain_rank3", 0, 2),  # those that make gates, too
        ("MoHAggregatedAttention", "plain", RUNTIME, 1),
    ],
)
def test_kernels_are_loaded_when_the_shape_is_known(
    harness: Harness, kernels: Kernels, op: str, case: str, phase: int, loads: int
):
    """A run may be captured into a CUDA graph."""
    plugin, run = _ready(harness, _case(op, case), phase=phase)
    assert kernels.take_loads() == loads
    assert kernels.calls == []
    _enqueue(plugin, run)
    assert kernels.take_loads() == 0
    assert kernels.calls


def test_an_old_driver_is_told_apart_from_no_gpu(harness: Harness, kernels: Kernels):
    kernels.multiprocessors = 0
    kernels.error = "The NVIDIA driver takes CUDA 12.4; this library needs 13.0."
    assert _attention(harness, phase=0).configure(_tensors((1, 16, 2000)))
    assert harness.log() == ""
    kernels.no_device = "kDriverTooOld"
    assert _attention(harness, phase=0).configure(_tensors((1, 16, 2000)))
    assert harness.log() == f"W MoHAttention (l): {kernels.error}\n"
