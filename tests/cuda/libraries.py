"""Builds the CUDA kernels for the emulator, and loads them.

Builds are kept in `build/cuda-emulated/`: a second one compiles only what has changed.
"""

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.cuda import abi
from tests.kept_builds import COMPILER, build_once, digest_of

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = ROOT / "plugins"
BUILDS = ROOT / "build" / "cuda-emulated"


class NoHeaders(Exception):
    """CUDA's headers were not found: the text says what to do."""


class BuildFailed(Exception):
    """The compiler's output."""


@dataclass(frozen=True)
class Variant:
    """A way to build the emulated library.

    Attributes:
        sanitize: For -fsanitize; empty: nothing.
        runtimes: Libraries that a process must have loaded before the library.
        environment: Of such a process.
    """

    name: str
    sanitize: str = ""
    runtimes: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()

    def process_environment(self) -> Mapping[str, str]:
        """Return the variables that a process needs to load this variant."""
        preload = " ".join(_runtime(name) for name in self.runtimes)
        return dict(self.environment) | ({"LD_PRELOAD": preload} if preload else {})


PLAIN = Variant("plain")
ADDRESS = Variant(
    "address",
    "address,undefined",
    ("libasan.so", "libubsan.so"),
    (
        # Leaks would be Python's; a second stack for each thread costs more than all else.
        ("ASAN_OPTIONS", "detect_leaks=0:detect_stack_use_after_return=0"),
        ("UBSAN_OPTIONS", "print_stacktrace=1"),
    ),
)
THREAD = Variant("thread", "thread", ("libtsan.so",), (("TSAN_OPTIONS", "exitcode=66"),))


def build(
    variant: Variant,
    *,
    plugins: Path = PLUGINS,
    folder: Path | None = None,
    definitions: tuple[str, ...] = (),
) -> Path:
    """Build the emulated library and return its path.

    Args:
        plugins: The sources: this repository's, or a changed copy of them.
        folder: Where to build; None: the variant's folder, which is kept.
        definitions: More options for CMake, such as -DNAME=VALUE.

    Raises:
        NoHeaders: CUDA's headers were not found.
        BuildFailed: Something does not compile.
    """
    folder = BUILDS / variant.name if folder is None else folder
    library = folder / "libmoh_cuda_emulated.so"
    options = [
        "-DMOH_CPU=OFF",
        "-DMOH_CUDA_EMULATED=ON",
        f"-DMOH_SANITIZE={variant.sanitize}",
        # Compiled in half the time of -O2, and hardly slower; lines for reports.
        "-DCMAKE_BUILD_TYPE=RelWithDebInfo",
        "-DCMAKE_CXX_FLAGS_RELWITHDEBINFO=-O1 -g1",
        "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON",
        *_packaged_headers(),
        *definitions,
    ]

    def compile_all() -> None:
        configured = _run(["cmake", "-S", str(plugins), "-B", str(folder), *options])
        if "moh-deploy: CUDA's headers" in configured.stdout:
            raise NoHeaders(" ".join(configured.stdout.split("moh-deploy: ")[1].split()))
        if configured.returncode:
            raise BuildFailed(configured.stdout)
        built = _run(["cmake", "--build", str(folder), "--parallel", "2"])
        if built.returncode:
            raise BuildFailed(built.stdout[-8000:])

    return build_once(library, digest_of(_sources(plugins), options), compile_all)


def copy_sources(folder: Path) -> Path:
    """Copy what a build needs to `folder`, to be changed there; return the copy of `plugins`."""
    shutil.copytree(PLUGINS, folder / "plugins")
    version = Path("moh_deploy", "__init__.py")
    (folder / version).parent.mkdir()
    shutil.copy(ROOT / version, folder / version)
    return folder / "plugins"


def _sources(plugins: Path) -> list[Path]:
    version = plugins.parent / "moh_deploy" / "__init__.py"
    return [version, *(path for path in plugins.rglob("*") if path.is_file())]


def _packaged_headers() -> list[str]:
    """Return CMake's option for headers that a Python package of NVIDIA has brought, if any did."""
    for entry in sys.path:
        for header in sorted(Path(entry).glob("nvidia/*/include/cuda_fp16.h")):
            return [f"-DCUDA_INCLUDE_DIR={header.parent}"]
    return []


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )


def _runtime(name: str) -> str:
    path = _run([COMPILER, f"-print-file-name={name}"]).stdout.strip()
    if not Path(path).is_absolute():
        raise BuildFailed(f"{COMPILER} has no {name}; it comes with the compiler's sanitizers.")
    return path


class Emulator:
    """An emulated library in this process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.library = ctypes.CDLL(str(path))
        abi.declare(self.library)

    @contextmanager
    def configured(self, **options: int) -> Iterator[None]:
        """Run with these options (see `abi.EmulatorOptions`), then with the usual ones again."""
        self.configure(**options)
        try:
            yield
        finally:
            self.configure()

    def configure(self, **options: int) -> None:
        """Set all options, the others to their defaults; forget counts and error."""
        chosen = abi.EmulatorOptions(**(abi.DEFAULT_OPTIONS | options))
        self.library.moh_emulator_configure(ctypes.byref(chosen))

    def counts(self) -> abi.EmulatorCounts:
        """What was counted since the last configuration."""
        counts = abi.EmulatorCounts()
        self.library.moh_emulator_counts(ctypes.byref(counts))
        return counts

    def error(self) -> str:
        """Why a launch failed; empty if none did since the last configuration."""
        return self.library.moh_emulator_error().decode()
