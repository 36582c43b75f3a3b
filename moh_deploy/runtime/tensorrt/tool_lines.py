"""Write the command lines with which TensorRT's own tools run an engine, or build it again."""

import importlib.util
import os
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path

from moh_deploy import package
from moh_deploy.runtime.tensorrt.engine_dir import ENGINE_NAME, EngineManifest
from moh_deploy.runtime.tensorrt.flavour import FLAVOURS, REGISTERED_NAME, Flavour
from moh_deploy.runtime.tensorrt.profiles import shapes

_REBUILT = "rebuilt.engine"
_LEVELS = {"AMPERE_PLUS": "ampere+", "SAME_COMPUTE_CAPABILITY": "sameComputeCapability"}
Shape = tuple[int, ...]


def tool_lines(root: Path, manifest: EngineManifest) -> tuple[str, ...]:
    """Return lines for a shell, for engines at the sizes that their first profile is tuned for.

    With the lowered model beside the engine, there are lines that build it, too: of a package's own
    `model.onnx` TensorRT's parser may refuse nodes, or take one function for another.
    """
    flavour, plugin = FLAVOURS[manifest.backend], manifest.plugin
    file = None if plugin is None else plugin.file
    is_kept = package.MODEL_NAME in manifest.files
    # What holds its library cannot be built from the engine's directory alone.
    is_embedded = plugin is not None and file is None
    lines = []
    if flavour.name == "tensorrt":
        trtexec = _Trtexec(root, manifest, file)
        lines += [trtexec.run()] if not manifest.builder.strip_weights else []
        lines += [trtexec.build()] if is_kept and not is_embedded else []
    if file is None or REGISTERED_NAME in manifest.files:
        # Polygraphy loads plugins before TensorRT: the linker has to find that by its name.
        environment = [] if file is None else _environment(flavour)
        if flavour.name == "tensorrt-rtx":
            environment.append("POLYGRAPHY_USE_TENSORRT_RTX=1")
        # Else the parser ends the process when it meets a plugin.
        if is_kept and file is not None and (link := flavour.library_to_name()) is not None:
            lines.append(_command_line(["ln", "-s", link[0].name, str(link[0].with_name(link[1]))]))
        polygraphy = _Polygraphy(root, manifest, file)
        lines += [polygraphy.run(environment)] if not manifest.builder.strip_weights else []
        lines += [polygraphy.build(environment)] if is_kept and not is_embedded else []
    return tuple(lines)


def _environment(flavour: Flavour) -> list[str]:
    spec = importlib.util.find_spec(f"{flavour.module}_libs")
    # Installed otherwise, TensorRT is where the linker looks.
    if spec is None or spec.origin is None:
        return []
    return [f"LD_LIBRARY_PATH={shlex.quote(os.path.dirname(spec.origin))}"]


def _command_line(words: Iterable[str], environment: Iterable[str] = ()) -> str:
    return " ".join([*environment, *map(shlex.quote, words)])


class _Tool:
    def __init__(self, root: Path, manifest: EngineManifest, plugin: str | None) -> None:
        self._root, self._manifest, self._plugin = root, manifest, plugin
        self._ranges = [shapes(manifest.inputs, profile) for profile in manifest.profiles]

    def _shapes(self, profile: int, end: int, text: Callable[[str, Shape], str]) -> list[str]:
        """Return the shapes of the inputs, each as a tool takes it.

        Args:
            end: 0 for the least sizes of the profile, 1 for the usual, 2 for the most.
        """
        return [text(name, ends[end]) for name, ends in self._ranges[profile].items()]


class _Trtexec(_Tool):
    def run(self) -> str:
        words = ["trtexec", f"--loadEngine={self._root / ENGINE_NAME}", *self._plugins()]
        plugin = self._manifest.plugin
        # By this option it lets an engine bring code along.
        if self._manifest.version_compatible or (plugin is not None and plugin.file is None):
            words.append("--versionCompatible")
        if self._ranges:
            words.append(f"--shapes={','.join(self._shapes(0, 1, _by_x))}")
        return _command_line(words)

    def build(self) -> str:
        manifest, asked = self._manifest, self._manifest.builder
        words = ["trtexec", f"--onnx={self._root / package.MODEL_NAME}", *self._plugins()]
        # TensorRT 11 is never anything else.
        if manifest.versions.get("TensorRT", "").startswith("10."):
            words.append("--stronglyTyped")
        words.append("--noTF32")
        for profile in range(len(self._ranges)):
            words.append(f"--profile={profile}")
            for end, name in enumerate(("min", "opt", "max")):
                words.append(f"--{name}Shapes={','.join(self._shapes(profile, end, _by_x))}")
        level, bytes_ = manifest.hardware_compatibility, manifest.workspace_bytes
        words += [f"--hardwareCompatibilityLevel={_LEVELS[level]}"] if level else []
        words += [f"--memPoolSize=workspace:{bytes_}B"] if bytes_ is not None else []
        words += ["--versionCompatible"] if manifest.version_compatible else []
        words += ["--refit"] if asked.refit else []
        words += ["--stripWeights"] if asked.strip_weights else []
        words += ["--allowWeightStreaming"] if asked.weight_streaming else []
        if asked.optimization_level is not None:
            words.append(f"--builderOptimizationLevel={asked.optimization_level}")
        return _command_line([*words, "--skipInference", f"--saveEngine={_REBUILT}"])

    def _plugins(self) -> list[str]:
        return [f"--dynamicPlugins={self._root / self._plugin}"] if self._plugin else []


class _Polygraphy(_Tool):
    def run(self, environment: Iterable[str]) -> str:
        engine = str(self._root / ENGINE_NAME)
        words = ["polygraphy", "run", engine, "--model-type", "engine", "--trt", *self._plugins()]
        if self._ranges:
            words += ["--input-shapes", *self._shapes(0, 1, _in_brackets)]
        return _command_line(words, environment)

    def build(self, environment: Iterable[str]) -> str:
        manifest, asked = self._manifest, self._manifest.builder
        model = str(self._root / package.MODEL_NAME)
        words = ["polygraphy", "convert", model, *self._plugins(), "--strongly-typed"]
        for profile in range(len(self._ranges)):
            for end, name in enumerate(("min", "opt", "max")):
                words += [f"--trt-{name}-shapes", *self._shapes(profile, end, _in_brackets)]
        level, bytes_ = manifest.hardware_compatibility, manifest.workspace_bytes
        words += ["--hardware-compatibility-level", level.lower()] if level else []
        words += ["--pool-limit", f"workspace:{bytes_}"] if bytes_ is not None else []
        words += ["--version-compatible"] if manifest.version_compatible else []
        words += ["--refittable"] if asked.refit else []
        words += ["--strip-plan"] if asked.strip_weights else []
        words += ["--weight-streaming"] if asked.weight_streaming else []
        if asked.optimization_level is not None:
            words += ["--builder-optimization-level", str(asked.optimization_level)]
        if manifest.compute_capabilities:
            words += ["--compute-capabilities", *manifest.compute_capabilities]
        return _command_line([*words, "-o", _REBUILT], environment)

    def _plugins(self) -> list[str]:
        return ["--plugins", str(self._root / REGISTERED_NAME)] if self._plugin else []


def _by_x(name: str, shape: Shape) -> str:
    return f"{name}:{'x'.join(map(str, shape))}"


def _in_brackets(name: str, shape: Shape) -> str:
    return f"{name}:[{','.join(map(str, shape))}]"
