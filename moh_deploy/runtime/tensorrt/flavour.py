"""The differences between TensorRT and TensorRT-RTX; everything else is one path."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from moh_deploy.errors import BackendError, ConfigError


@dataclass(frozen=True)
class Flavour:
    """TensorRT or TensorRT-RTX: how it is called, found, and told what to build for.

    Attributes:
        name: As `--backend` takes it.
        title: As people call it.
        module: Python's name.
        oldest: The least version that is taken.
        targets: Compute capabilities that can be named, with those that are meant where none is;
            empty: it builds for the GPU that it finds.
        has_timing_cache: Whether it measures when it builds; else it compiles when it runs.
        libraries: Package whose library's unversioned name is missing, and that name; the parser
            looks for it when it meets a plugin, and the process aborts without it.
        install: How to get it.
    """

    name: str
    title: str
    module: str
    oldest: tuple[int, int]
    targets: Mapping[str, bool]
    has_timing_cache: bool
    libraries: tuple[str, str] | None
    install: str

    def require_installed(self) -> None:
        """Raise a BackendError if Python does not find it."""
        if importlib.util.find_spec(self.module) is None:
            raise BackendError(
                f"{self.title} is not installed: there is no Python package '{self.module}'.",
                hint=self.install,
            )

    def check_version(self, version: str) -> None:
        """Raise a BackendError if a version is too old."""
        # Compared as numbers: as text, 10.12 would be older than 10.7. A patch level is never
        # required.
        if tuple(map(int, version.split(".")[:2])) < self.oldest:
            oldest = ".".join(map(str, self.oldest))
            raise BackendError(
                f"{self.title} is of version {version}, expected {oldest} or later.",
                hint=self.install,
            )

    def targets_of(self, asked: tuple[str, ...]) -> tuple[str, ...]:
        """Return the compute capabilities to build for; nothing where the GPU decides.

        Args:
            asked: `8.6` and the like, as the user named them.

        Raises:
            ConfigError: It has no such target, or takes none.
        """
        if asked and not self.targets:
            raise ConfigError(
                f"compute_capability is {', '.join(asked)}, but {self.title} builds for the GPU of"
                " the machine that it runs on.",
                hint="Leave the option out, or build with --backend tensorrt-rtx.",
            )
        for name in asked:
            if name not in self.targets:
                raise ConfigError(
                    f"compute_capability is '{name}', {self.title} has {', '.join(self.targets)}.",
                    hint=None if self.name == "tensorrt" else _FOR_OTHER_GPUS,
                )
        usual = tuple(target for target, is_usual in self.targets.items() if is_usual)
        # Named twice, a GPU is built for once.
        return tuple(dict.fromkeys(asked)) or usual

    def library_to_name(self) -> tuple[Path, str] | None:
        """Return the library that the parser looks for by another name, and that name."""
        spec = importlib.util.find_spec(self.libraries[0]) if self.libraries else None
        if self.libraries is None or spec is None or spec.origin is None:
            return None
        name = self.libraries[1]
        # The wheel may hold versioned names only, such as `libtensorrt_rtx.so.1`.
        versioned = sorted(Path(spec.origin).parent.glob(f"{name}.*"))
        missing = versioned and not (Path(spec.origin).parent / name).exists()
        return (versioned[0], name) if missing else None


_FOR_OTHER_GPUS = "GPUs of servers (8.0 apart) are for --backend tensorrt, on such a machine."

FLAVOURS: Mapping[str, Flavour] = {
    "tensorrt": Flavour(
        name="tensorrt",
        title="TensorRT",
        module="tensorrt",
        oldest=(10, 7),
        targets={},
        has_timing_cache=True,
        libraries=None,
        install="pip install tensorrt, on a machine with an NVIDIA GPU; or work in one of"
        " NVIDIA's TensorRT containers.",
    ),
    "tensorrt-rtx": Flavour(
        name="tensorrt-rtx",
        title="TensorRT-RTX",
        module="tensorrt_rtx",
        oldest=(1, 1),
        targets={"7.5": False, "8.0": True, "8.6": True, "8.9": True, "12.0": True, "12.1": False},
        has_timing_cache=False,
        libraries=("tensorrt_rtx_libs", "libtensorrt_rtx.so"),
        install="pip install tensorrt-rtx-cu13, or 'moh-deploy[tensorrt-rtx]'.",
    ),
}
