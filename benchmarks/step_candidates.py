"""Who takes a step in step_cpu.py: one token behind a cache of a given length.

| candidate | cache |
|---|---|
| ours, N open | one buffer, in place; kernels |
| GroupQueryAttention | one buffer; the dense form by genai's builder, in ONNX Runtime |
| GroupQueryAttention, dynamic int8 | the same by ONNX Runtime's dynamic quantiser |
| plain export | grows: read and written again in each step |
| OpenVINO | a state of the model, appended to; float32, caches too; see below |
| genai, ... | as above, but in onnxruntime-genai's own loop, its search included |

OpenVINO's weights of few bits are NNCF's; caches and the rest are what it chooses then: 8 bits, and
bfloat16 where there is AMX.
"""

import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnxruntime as ort
import torch
from ort_session import plain_session
from step_models import Flat, Sizes, StepModels, example, past_names, present_names
from torch import Tensor

from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.onnxruntime.runner import OrtRunner
from moh_deploy.runtime.onnxruntime.session import open_session
from moh_deploy.system.npz import Array

TOKEN = 7
Caches = Mapping[str, Array]
"""By the names of `past_names`, [1, kv heads, past, head_dim]."""


class Candidate(ABC):
    """One of them, loaded for a number of threads.

    Attributes:
        open_heads: Of the decoder; None: it is the form without routers.
    """

    name: str
    open_heads: int | None = None

    @abstractmethod
    def fill(self, caches: Caches, room: int) -> None:
        """Take caches; up to `room` steps follow, and some may be written at one place."""

    @abstractmethod
    def step(self) -> object:
        """Take a step of decoding."""

    @abstractmethod
    def logits(self) -> Array | None:
        """Return what the first step behind `fill` computes, [vocab]; None where that is behind a
        text of the same length and not behind the caches."""


class _Bound(Candidate):
    """A session of ONNX Runtime whose inputs and outputs are bound to arrays."""

    shares_buffer = True

    def __init__(self, session: ort.InferenceSession, sizes: Sizes) -> None:
        self._session, self._sizes = session, sizes

    def fill(self, caches: Caches, room: int) -> None:
        past = next(iter(caches.values())).shape[2]
        feeds = {
            "input_ids": np.full((1, 1), TOKEN, np.int64),
            "attention_mask": np.ones((1, past + 1), np.int64),
        }
        binding = self._session.io_binding()
        self._logits = np.empty((1, 1, self._sizes.vocab), np.float32)
        self._values = [ort.OrtValue.ortvalue_from_numpy(self._logits)]
        binding.bind_ortvalue_output("logits", self._values[0])
        for name, array in feeds.items():
            self._values.append(ort.OrtValue.ortvalue_from_numpy(array))
            binding.bind_ortvalue_input(name, self._values[-1])
        pairs = zip(past_names(self._sizes), present_names(self._sizes), strict=True)
        for name, output in pairs:
            given = caches[name]
            longer = np.pad(given, ((0, 0), (0, 0), (0, room), (0, 0)))
            first = longer if self.shares_buffer else np.ascontiguousarray(given)
            value = ort.OrtValue.ortvalue_from_numpy(first)
            binding.bind_ortvalue_input(name, value)
            if not self.shares_buffer:  # its own memory, so that none is allocated in a step
                value = ort.OrtValue.ortvalue_from_numpy(
                    np.ascontiguousarray(longer[:, :, : past + 1])
                )
            self._values.append(value)
            binding.bind_ortvalue_output(output, value)
        self._binding = binding

    def step(self) -> object:
        # The caller feeds the same token to the same place each time.
        return self._session.run_with_iobinding(self._binding)

    def logits(self) -> Array:
        self.step()
        return np.asarray(self._binding.get_outputs()[0].numpy()[0, 0])


class Ours(_Bound):
    """A package with its caches in place, on kernels."""

    def __init__(self, package: Path, open_heads: int, sizes: Sizes, threads: int) -> None:
        variant = Variant(threads=threads, kernels="require", spins=False)
        runner = open_session(OnnxPackage.open(package), variant)
        assert isinstance(runner, OrtRunner)
        super().__init__(runner.session, sizes)
        self.name, self.open_heads = f"ours, {open_heads} of {sizes.heads} open", open_heads


class GroupQuery(_Bound):
    """What genai's builder makes of the dense form, without genai around it."""

    def __init__(
        self, directory: Path, sizes: Sizes, threads: int, name: str = "GroupQueryAttention"
    ) -> None:
        self.name = name
        super().__init__(plain_session(directory / "model.onnx", threads=threads), sizes)


class Plain(_Bound):
    """The step by PyTorch's own export."""

    name, shares_buffer = "plain export", False

    def __init__(self, model: Path, sizes: Sizes, threads: int) -> None:
        super().__init__(plain_session(model, threads=threads), sizes)
        self.open_heads = sizes.heads


class Openvino(Candidate):
    """The decoder converted from PyTorch, whose caches are states, as Optimum Intel makes them."""

    name = "OpenVINO, stateful"

    def __init__(self, models: StepModels, threads: int) -> None:
        import openvino

        model = _stateful(models)
        if models.weights != "float32":
            model = _in_few_bits(model, models.weights)
        settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        if models.weights == "float32":
            settings |= {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
        compiled = openvino.Core().compile_model(model, "CPU", settings)
        self._request, self.open_heads = compiled.create_infer_request(), models.sizes.heads

    def fill(self, caches: Caches, room: int) -> None:
        import openvino

        self._caches = caches
        # It appends in each step: half of them are behind fewer tokens, half behind more.
        self._past = max(1, next(iter(caches.values())).shape[2] - room // 2)
        for state in self._request.query_state():
            name = state.name.partition("present")[0]
            state.state = openvino.Tensor(np.ascontiguousarray(caches[name][:, :, : self._past]))

    def step(self) -> object:
        self._past += 1
        mask = np.ones((1, self._past), np.int64)
        ids = np.full((1, 1), TOKEN, np.int64)
        feeds = {"input_ids": ids, "attention_mask": mask, "beam_idx": np.zeros(1, np.int32)}
        return self._request.infer(feeds, share_inputs=True, share_outputs=True)

    def logits(self) -> Array:
        self.fill(self._caches, 0)
        self.step()
        return np.array(self._request.get_tensor("logits").data[0, 0])


class Genai(Candidate):
    """A directory that onnxruntime-genai opens, in its own loop."""

    def __init__(self, name: str, directory: Path, sizes: Sizes, threads: int) -> None:
        import onnxruntime_genai as og

        self.name = f"genai, {name}"
        config = og.Config(str(directory))
        options = {"intra_op_num_threads": threads, "session.intra_op.allow_spinning": "0"}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self._og, self._model, self._sizes = og, og.Model(config), sizes

    def fill(self, caches: Caches, room: int) -> None:
        """Read a prompt as long as the caches: genai takes none that are filled."""
        past = next(iter(caches.values())).shape[2]
        settings = self._og.GeneratorParams(self._model)
        settings.set_search_options(
            batch_size=1, max_length=past + room, min_length=past + room, do_sample=False
        )
        self._generator = self._og.Generator(self._model, settings)
        self._start = max(1, past - room // 2)
        ids = np.random.default_rng(0).integers(1, self._sizes.vocab, (1, self._start))
        self._generator.append_tokens(ids.astype(np.int32))
        self._generator.generate_next_token()

    def step(self) -> object:
        if self._generator.is_done():  # the cache is as long as it may be
            self._generator.rewind_to(self._start)
        return self._generator.generate_next_token()

    def logits(self) -> None:
        return None


def _repeated(x: Tensor, times: int, dim: int) -> Tensor:
    """Repeat heads as transformers does: OpenVINO's attention on states knows no other way."""
    assert dim == 1
    batch, heads, tokens, size = x.shape
    wide = x[:, :, None].expand(batch, heads, times, tokens, size)
    return wide.reshape(batch, heads * times, tokens, size)


def _in_few_bits(model: Any, weights: str) -> Any:
    # What it tells of itself, from its import on, is not what --json prints.
    with redirect_stdout(sys.stderr):
        import nncf

        # As it does by default: int8 for each column; int4 in blocks, the last product in int8.
        mode = getattr(nncf.CompressWeightsMode, f"{weights.upper()}_SYM")
        return nncf.compress_weights(model, mode=mode)


def _stateful(models: StepModels) -> Any:
    """Convert the decoder, and make states of its caches; `beam_idx` reorders sequences."""
    import openvino
    from openvino import opset13
    from openvino._offline_transformations import apply_make_stateful_transformation

    sizes = models.sizes
    inputs, _ = example(sizes)
    cache = openvino.PartialShape([-1, sizes.kv_heads, -1, sizes.head_dim])
    tokens = openvino.PartialShape([-1, -1])
    with torch.no_grad(), patch.object(Tensor, "repeat_interleave", _repeated):
        model = openvino.convert_model(
            Flat(models.module()).eval(),
            example_input=inputs,
            input=[tokens, tokens, *[cache] * (len(inputs) - 2)],
        )
    given = ["input_ids", "attention_mask", *past_names(sizes)]
    made = ["logits", *present_names(sizes)]
    for ports, names in ((model.inputs, given), (model.outputs, made)):
        for port, name in zip(ports, names, strict=True):
            port.get_tensor().set_names({name})
    order = opset13.parameter(openvino.PartialShape([-1]), openvino.Type.i32, name="beam_idx")
    order.output(0).get_tensor().set_names({"beam_idx"})
    model.add_parameters([order])
    for name in past_names(sizes):
        port = model.input(name)
        readers = port.get_target_inputs()
        reordered = opset13.gather(port, order, opset13.constant(0))
        for reader in readers:
            reader.replace_source_output(reordered.output(0))
    model.validate_nodes_and_infer_types()
    pairs = dict(zip(past_names(sizes), present_names(sizes), strict=True))
    apply_make_stateful_transformation(model, pairs)
    _begin_empty(model, sizes)
    return model


def _begin_empty(model: Any, sizes: Sizes) -> None:
    """Say what the states are before they are filled: attention on states asks for that."""
    from openvino import opset13

    shape_of_ids = opset13.shape_of(model.input("input_ids"), "i64")
    batch = opset13.gather(shape_of_ids, opset13.constant([0]), opset13.constant(0))
    rest = opset13.constant(np.array([sizes.kv_heads, 0, sizes.head_dim], np.int64))
    shape = opset13.concat([batch, rest], axis=0)
    for node in model.get_ops():
        if node.get_type_name() == "ReadValue":
            zero = opset13.constant(np.zeros((), np.float32))
            node.set_arguments([opset13.broadcast(zero, shape)])
    model.validate_nodes_and_infer_types()


def random_caches(sizes: Sizes, past: int) -> Caches:
    draws = np.random.default_rng(past)
    shape = 1, sizes.kv_heads, past, sizes.head_dim
    return {
        name: draws.standard_normal(shape, dtype=np.float32) * np.float32(0.5)
        for name in past_names(sizes)
    }


def expected_logits(model: torch.nn.Module, sizes: Sizes, caches: Caches) -> Array:
    """Return what PyTorch computes behind caches, [vocab]."""
    past: Sequence[Array] = list(caches.values())
    mask = torch.ones(1, past[0].shape[2] + 1, dtype=torch.int64)
    with torch.no_grad():
        results = Flat(model)(torch.full((1, 1), TOKEN), mask, *map(torch.from_numpy, past))
    logits: Array = results[0][0, 0].numpy()
    return logits
