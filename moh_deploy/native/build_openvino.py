"""Build the extension by which OpenVINO runs MoH nodes on our CPU kernels: libmoh_openvino.so.

The first model that opens in OpenVINO builds it. `python -m moh_deploy.native.build_openvino`, by
the Python whose OpenVINO is to run models, builds it anew after OpenVINO was upgraded: the library
is compiled against the headers of that wheel and is good for that release alone. It takes a C++
compiler (`CXX`, or `c++`). Its sources come with moh-deploy; the kernels are those that ONNX
Runtime runs.
"""

import argparse
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from moh_deploy import __version__
from moh_deploy.native import BUILD_OPENVINO, FOLDER, OPENVINO_NAME

_NODES = ("node", "aggregated_attention", "attention", "router", "token_conv")
EXTENSION_SOURCES = (
    "openvino/extension.cc",
    "openvino/kernels.cc",
    *(f"nodes/{name}.cc" for name in _NODES),
)
OPTIONS = ("-std=c++17", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-Wl,-z,defs")


class NotBuilt(Exception):
    """There is no library; says why."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument(
        "--folder",
        type=Path,
        default=FOLDER,
        help="where to put it; default: where moh-deploy looks for it",
    )
    try:
        print(f"built {build_openvino(parser.parse_args().folder)}")
    except NotBuilt as failure:
        sys.exit(f"moh-deploy: no extension of OpenVINO: {failure}")


def build_openvino(folder: Path) -> Path:
    """Compile the library for the OpenVINO of this Python, and return its path in `folder`.

    Raises:
        NotBuilt: There is no OpenVINO or no compiler, or it failed.
    """
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        raise NotBuilt("there is no C++ compiler: apt install g++, then run this again")
    wheel, sources = _wheel(), _sources()
    if not os.access(folder, os.W_OK):
        raise NotBuilt(f"{folder} is not writable: run {BUILD_OPENVINO} as its owner")
    target = folder / OPENVINO_NAME
    # In place in one step: a process may have the old one in use, and another one may build, too.
    partial = target.with_name(f"{OPENVINO_NAME}.{os.getpid()}.partial")
    try:
        command = _command(compiler, wheel, sources, partial)
        print(f"building {target.name}: once, some seconds ...", file=sys.stderr, flush=True)
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        if done.returncode:
            raise NotBuilt(f"the compiler failed:\n{done.stdout}")
        partial.replace(target)
    except OSError as error:
        raise NotBuilt(f"{compiler.split()[0]} cannot be run: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)
    return target


def _wheel() -> Path:
    """Return the folder of the package openvino, which is not imported."""
    found = importlib.util.find_spec("openvino")
    if found is None or found.origin is None:
        raise NotBuilt("openvino is not installed: pip install 'moh-deploy[openvino]'")
    wheel = Path(found.origin).parent
    if not (wheel / "include" / "openvino" / "core" / "version.hpp").is_file():
        raise NotBuilt(f"{wheel} has no headers: install OpenVINO's own wheel from PyPI")
    return wheel


def _sources() -> Path:
    """Return the folder `plugins`: of an installation, or of the source tree that this lies in."""
    places = (FOLDER / "plugins", FOLDER.parent.parent / "plugins")
    found = next((place for place in places if (place / EXTENSION_SOURCES[0]).is_file()), None)
    if found is None:
        raise NotBuilt(f"its sources are in none of {', '.join(map(str, places))}")
    return found


def _command(compiler: str, wheel: Path, sources: Path, target: Path) -> list[str]:
    release = importlib.metadata.version("openvino")
    libraries = []
    for name in ("openvino", "openvino_onnx_frontend", "tbb"):
        # The name of a file ends with the release.
        found = sorted((wheel / "libs").glob(f"lib{name}.so.*"))
        if not found:
            raise NotBuilt(f"{wheel / 'libs'} has no lib{name}.so")
        # By its path: so its soname is what the extension asks for, and no folder of this machine.
        libraries.append(str(found[0]))
    return [
        *compiler.split(),
        *OPTIONS,
        f'-DMOH_OPENVINO_RELEASE="{release}"',
        f'-DMOH_VERSION="{__version__}"',
        f"-isystem{wheel / 'include'}",
        f"-I{sources}",
        f"-I{sources / 'include'}",
        *(str(sources / name) for name in EXTENSION_SOURCES),
        *libraries,
        "-o",
        str(target),
    ]


if __name__ == "__main__":
    main()
