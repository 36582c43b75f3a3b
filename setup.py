"""What pyproject.toml cannot say: the CPU kernels are built with the package where possible.

The wheel is for this platform if it holds the library, and for any if it does not.
"""

from __future__ import annotations

import sys
from pathlib import Path

from setuptools import Command, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "tools"))

from build_kernels import PACKAGE, build_kernels  # noqa: E402


class BuildKernels(Command):
    """Build the library into the build folder, or into the sources for an editable install."""

    description = "build the CPU kernels"
    user_options = ()
    editable_mode = False
    built: bool | None = None

    def initialize_options(self) -> None:
        self.build_lib = None

    def finalize_options(self) -> None:
        self.set_undefined_options("build_py", ("build_lib", "build_lib"))

    def run(self) -> None:
        self.built = build_kernels((ROOT if self.editable_mode else Path(self.build_lib)) / PACKAGE)

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

    def run(self) -> None:
        self.run_command("build_kernels")
        self.root_is_pure = not self.get_finalized_command("build_kernels").built
        if not self.root_is_pure:
            # Files are installed as those of a platform, too.
            self.distribution.has_ext_modules = lambda: True
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        platform = super().get_tag()[2]
        return "py3", "none", platform  # the library does not know Python


setup(cmdclass={"build": Build, "build_kernels": BuildKernels, "bdist_wheel": Wheel})
