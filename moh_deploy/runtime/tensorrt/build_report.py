"""The reports of `build`, on an engine that was or would be built, and of `inspect` on one."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from moh_deploy.errors import MoHDeployError
from moh_deploy.package import TensorInfo
from moh_deploy.report.document import Block, Document, Table, Text
from moh_deploy.report.report import Report, si
from moh_deploy.runtime.tensorrt.engine_dir import EngineLayer, EngineManifest
from moh_deploy.runtime.tensorrt.preflight import Rejection, refusal, rejection_reasons
from moh_deploy.runtime.tensorrt.profiles import Profile, profile_text


@dataclass(frozen=True)
class BuildReport(Report):
    """The result of a build.

    Attributes:
        output: The engine directory.
        backend: What people call it: `TensorRT-RTX 1.7.1`.
        status: `built`; `cached`: an engine of all the same was there already; `possible` or
            `refused`: what a dry run found.
        compute_capabilities: What it is built for; none: for the GPU of this machine.
        plugin: Where the plugin library is: a name in the directory, `in the engine`, or None.
        engine_bytes: Size of the engine; None without an engine.
        build_seconds: How long TensorRT built; None without an engine.
        tool_lines: Commands of trtexec and Polygraphy that run the engine; with the lowered model
            beside it, commands that build it, too.
    """

    output: Path
    backend: str
    status: str
    precision: str
    compute_capabilities: tuple[str, ...]
    profiles: tuple[Profile, ...]
    layers: tuple[EngineLayer, ...]
    plugin: str | None
    rejections: tuple[Rejection, ...] = ()
    notes: tuple[str, ...] = ()
    engine_bytes: int | None = None
    build_seconds: float | None = None
    tool_lines: tuple[str, ...] = ()

    @property
    def failure(self) -> MoHDeployError | None:
        """The error that a refusal ends the command with."""
        return refusal(self.rejections, title=self.backend) if self.rejections else None

    def document(self) -> Document:
        """Return what it says."""
        targets = ", ".join(self.compute_capabilities) or "of this machine's GPU"
        subject = f"{self.backend}, compute capability {targets}, {self.precision}"
        blocks: list[Block] = [Text(self._verdict(), self.status != "refused"), Text(subject)]
        blocks += (Text(f"profile: {profile_text(profile)}") for profile in self.profiles)
        if self.layers:
            blocks.append(_layer_ways(self.layers))
        blocks += map(Text, self.notes)
        blocks += (Text(line, is_whole=True) for line in self.tool_lines)
        return Document("build", tuple(blocks))

    def _verdict(self) -> str:
        kinds = Counter(layer.moh_impl for layer in self.layers)
        layers = ", ".join(f"{number} by {kind}" for kind, number in kinds.items()) or "none"
        size = f"{si(self.engine_bytes)}B"
        if self.status == "refused":
            return f"REFUSED for {rejection_reasons(self.rejections)}"
        if self.status == "possible":
            return f"NOTHING WRITTEN: this can be built; MoH layers: {layers}"
        if self.status == "cached":
            return f"NOTHING TO DO: {self.output} is of all the same ({size}; MoH layers: {layers})"
        return f"BUILT {self.output} in {self.build_seconds:.1f} s ({size}; MoH layers: {layers})"


def _layer_ways(layers: Sequence[EngineLayer]) -> Table:
    """Return what runs each layer, and why."""
    columns = ("layer", "attention", "router", "ms", "why")
    rows = []
    for layer in layers:
        # `kernel 0.052, fused 0.061`, and a number for each profile.
        times = ", ".join(
            f"{way} {'/'.join(f'{ms:.3g}' for ms in each)}" for way, each in layer.times_ms.items()
        )
        ways = layer.path, layer.moh_impl, layer.router_impl
        rows.append((*ways, times or None, layer.decision or layer.reason))
    return Table("MoH layers", columns, rows)


@dataclass(frozen=True)
class EngineReport(Report):
    """The facts about an engine.

    Attributes:
        engine: Its directory.
        manifest: Layers and what runs each, profiles, precision, versions, GPU; see
            `EngineManifest`.
        engine_bytes: Size of the engine.
        tool_lines: As `moh-deploy build` prints them.
    """

    engine: Path
    manifest: EngineManifest
    engine_bytes: int
    tool_lines: tuple[str, ...]

    def document(self) -> Document:
        """Return what it says."""
        manifest = self.manifest
        versions = ", ".join(f"{name} {text}" for name, text in manifest.versions.items())
        targets = ", ".join(manifest.compute_capabilities) or "of the GPU that it was built on"
        blocks: list[Block] = [
            Text(f"engine {self.engine}: {si(self.engine_bytes)}B, {manifest.precision}"),
            Text(f"built by {versions}; compute capability {targets}"),
        ]
        blocks += (Text(f"profile: {profile_text(profile)}") for profile in manifest.profiles)
        for kind, infos in (("input", manifest.inputs), ("output", manifest.outputs)):
            blocks += (Text(f"{kind} {_tensor(info)}") for info in infos)
        if manifest.plugin is not None:
            blocks.append(Text(f"plugins: {manifest.plugin.file or 'in the engine'}"))
        asked = [
            field.name if value is True else f"{field.name} {value}"
            for field in fields(manifest.builder)
            if (value := getattr(manifest.builder, field.name)) not in (False, None)
        ]
        blocks += [Text(f"built with {', '.join(asked)}")] if asked else []
        blocks += [_layer_ways(manifest.layers)] if manifest.layers else []
        blocks += (Text(line, is_whole=True) for line in self.tool_lines)
        return Document("inspect", tuple(blocks))


def _tensor(info: TensorInfo) -> str:
    return f"{info.name}: {info.dtype} [{', '.join(map(str, info.shape))}]"
