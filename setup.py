"""What pyproject.toml cannot say: the CPU kernels are built with the package where possible.

The wheel is for this platform if it holds the library, and for any if it does not. With `--target`,
which is `-C target=ARCHITECTURE` of tools/build_backend.py, it is for every Linux of that kind.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from setuptools import Command, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "tools"))

from build_kernels import GLIBC, PACKAGE, TARGETS, build_kernels  # noqa: E402

# What `python -m moh_deploy.native.build_openvino` compiles where moh-deploy is installed.
NEEDED_BY_EXTENSION = ("openvino/*", "nodes/*", "include/moh/*", "cpu/kernels.h", "cpu/parallel.h")


class BuildPython(build_py):
    """Python's files, and the few native ones that are compiled where they are used."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        # The build folder is that of earlier builds, too: what they had and this one has not goes.
        kept = {Path(one) for one in self.get_outputs(include_bytecode=False)}
        for old in Path(self.build_lib, PACKAGE.parts[0]).rglob("*.py"):
            if old not in kept:
                old.unlink()
        shutil.copytree(
            ROOT / "export_configs",
            Path(self.build_lib, "moh_deploy/export_configs"),
            dirs_exist_ok=True,
        )
        plugins = ROOT / "plugins"
        for source in (path for part in NEEDED_BY_EXTENSION for path in plugins.glob(part)):
            target = Path(self.build_lib) / PACKAGE / "plugins" / source.relative_to(plugins)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        # What `moh-deploy help` shows.
        pages = Path(self.build_lib) / "moh_deploy" / "docs"
        shutil.rmtree(pages, ignore_errors=True)
        pages.mkdir(parents=True)
        for page in (ROOT / "docs").glob("*.md"):
            shutil.copy(page, pages)


class BuildKernels(Command):
    """Build the library into the build folder, or into the sources for an editable install."""

    description = "build the CPU kernels"
    user_options = ()
    editable_mode = False
    built: bool | None = None
    target: str | None = None

    def initialize_options(self) -> None:
        self.build_lib = None

    def finalize_options(self) -> None:
        self.set_undefined_options("build_py", ("build_lib", "build_lib"))

    def run(self) -> None:
        folder = (ROOT if self.editable_mode else Path(self.build_lib)) / PACKAGE
        self.built = build_kernels(folder, self.target)

    # setuptools asks every part of a build for these.

    def get_source_files(self) -> list[str]:
        return []

    def get_outputs(self) -> list[str]:
        return []

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class Build(build):
    sub_commands = (*build.sub_commands, ("build_kernels", None))


class Wheel(bdist_wheel):
    """A wheel whose tag says what is in it, which is known only when the kernels are built."""

    user_options = [  # noqa: RUF012  (setuptools wants a list)
        *bdist_wheel.user_options,
        ("target=", None, f"for every Linux of an architecture: {' or '.join(TARGETS)}"),
    ]
    target: str | None = None

    def run(self) -> None:
        self.get_finalized_command("build_kernels").target = self.target
        self.run_command("build_kernels")
        self.root_is_pure = not self.get_finalized_command("build_kernels").built
        if not self.root_is_pure:
            # Files are installed as those of a platform, too.
            self.distribution.has_ext_modules = lambda: True
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        # The library does not know Python.
        if self.target:
            return "py3", "none", f"manylinux_{GLIBC.replace('.', '_')}_{self.target}"
        return "py3", "none", super().get_tag()[2]


setup(
    cmdclass={
        "build": Build,
        "build_kernels": BuildKernels,
        "build_py": BuildPython,
        "bdist_wheel": Wheel,
    }
)
