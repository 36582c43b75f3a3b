"""Ask an ONNX Runtime session which nodes of domain `moh` run on a kernel."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from moh_deploy.ops.op_names import KERNEL_DOMAIN, base_domain
from moh_deploy.package.graph_nodes import all_nodes
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
        # What has no kernel is gone: its function body stands in its place, under other names.
        kept = _assigned(session) if _reports_assignment() else self._dumped()
        return {name: "kernel" if name in kept else "function" for name in self.nodes}

    @property
    def _dump(self) -> Path:
        return self.scratch / "optimized.onnx"

    def _dumped(self) -> set[str]:
        graph = onnx.load(self._dump, load_external_data=False).graph
        return {node.name for node in all_nodes(graph) if base_domain(node.domain) == KERNEL_DOMAIN}


def _reports_assignment() -> bool:
    """ONNX Runtime tells since 1.24; before, its optimised model has to be written out and read."""
    import onnxruntime as ort

    return hasattr(ort.InferenceSession, "get_provider_graph_assignment_info")


def _assigned(session: ort.InferenceSession) -> set[str]:
    subgraphs = session.get_provider_graph_assignment_info()
    nodes = [node for graph in subgraphs for node in graph.get_nodes()]
    return {node.name for node in nodes if base_domain(node.domain) == KERNEL_DOMAIN}
