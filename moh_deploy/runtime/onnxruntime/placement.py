"""Give an ONNX Runtime session our kernels, and ask it which nodes of domain `moh` run on them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from moh_deploy.errors import BackendError
from moh_deploy.ops.op_names import KERNEL_DOMAIN, base_domain
from moh_deploy.package.graph_nodes import all_nodes
from moh_deploy.runtime.kernel_use import REINSTALL, KernelUse
from moh_deploy.runtime.layer_runs import LayerImpl

if TYPE_CHECKING:
    import onnxruntime as ort


@dataclass(frozen=True)
class Placement:
    """The question, put before a session is made and answered after.

    Args:
        nodes: Names of the model's nodes of domain `moh`.
        scratch: An empty directory that lives until the answer is read.
    """

    nodes: Sequence[str]
    scratch: Path

    def prepare(self, options: ort.SessionOptions) -> None:
        """Let the session keep what `read` needs."""
        if not self.nodes:
            return
        # A kernel is chosen, or a function body inlined, while the session is made: it has to be
        # asked to remember.
        if _reports_assignment():
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        else:
            options.optimized_model_filepath = os.fsencode(self._dump)
            # Weights beside the dump: a protobuf file holds 2 GiB at most.
            options.add_session_config_entry(
                "session.optimized_model_external_initializers_file_name", "weights.bin"
            )

    def read(self, session: ort.InferenceSession) -> dict[str, LayerImpl]:
        """Return for each node whether a kernel runs it, or its function body."""
        if not self.nodes:
            return {}
        nodes: Iterable[Any]
        if _reports_assignment():
            subgraphs = session.get_provider_graph_assignment_info()
            nodes = [node for graph in subgraphs for node in graph.get_nodes()]
        else:
            nodes = all_nodes(onnx.load(self._dump, load_external_data=False).graph)
        # What has no kernel is gone: its function body stands in its place, under other names.
        kept = {node.name for node in nodes if base_domain(node.domain) == KERNEL_DOMAIN}
        return {name: "kernel" if name in kept else "function" for name in self.nodes}

    @property
    def _dump(self) -> Path:
        return self.scratch / "optimized.onnx"


def _reports_assignment() -> bool:
    """ONNX Runtime tells since 1.24; before, its optimised model has to be written out and read."""
    import onnxruntime as ort

    return hasattr(ort.InferenceSession, "get_provider_graph_assignment_info")


def register(use: KernelUse, options: ort.SessionOptions, domains: Iterable[str] = ()) -> None:
    """Give the library to a session that is still to be made.

    Args:
        domains: Those in which the model has nodes that are to run on kernels; none for the eight
            that the library expects.

    Raises:
        BackendError: The library or this ONNX Runtime refuses, with the reason.
    """
    if use.library is None:
        return
    # The library reads these when it is registered. That for GPUs has one set of kernels.
    if use.instruction_set is not None:
        options.add_session_config_entry("moh.instruction_set", use.instruction_set)
        options.add_session_config_entry("moh.compute_type", use.compute_type)
    if named := ",".join(sorted(domains)):
        options.add_session_config_entry("moh.domains", named)
    try:
        options.register_custom_ops_library(str(use.library))
    except Exception as error:  # ONNX Runtime's exceptions have no common base class but this.
        import onnxruntime as ort

        raise BackendError(
            f"{use.library} cannot be registered with ONNX Runtime {ort.__version__}: {error}",
            hint=REINSTALL,
        ) from error
