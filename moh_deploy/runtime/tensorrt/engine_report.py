"""The report of `inspect` on an engine: what `engine.json` knows."""

from dataclasses import dataclass, fields
from pathlib import Path

from moh_deploy.package import TensorInfo
from moh_deploy.report.document import Block, Document, Text
from moh_deploy.report.report import Report, si
from moh_deploy.runtime.tensorrt.build_report import layer_ways
from moh_deploy.runtime.tensorrt.engine_dir import EngineManifest
from moh_deploy.runtime.tensorrt.profiles import profile_text


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
        blocks += [layer_ways(manifest.layers)] if manifest.layers else []
        blocks += (Text(line, is_whole=True) for line in self.tool_lines)
        return Document("inspect", tuple(blocks))


def _tensor(info: TensorInfo) -> str:
    return f"{info.name}: {info.dtype} [{', '.join(map(str, info.shape))}]"
