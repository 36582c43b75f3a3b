"""Write THIRD_PARTY_LICENSES: licences of what `make wheels` compiles into the kernel library.

    python tools/third_party_licenses.py

It reads Debian's copyright files of the headers, and the files of zig's C++ libraries, which are
linked statically. Run it where the wheels are built, after another version of one of these.
"""

from importlib.util import find_spec
from pathlib import Path

DEBIAN = {"ONNX Runtime (headers)": "libonnxruntime-dev", "Highway (headers)": "libhwy-dev"}
OF_ZIG = {"libc++": "libcxx", "libc++abi": "libcxxabi", "libunwind": "libunwind"}
OUTPUT = Path(__file__).parents[1] / "THIRD_PARTY_LICENSES"


def texts() -> dict[str, str]:
    """Return the name of each part to its licence."""
    spec = find_spec("ziglang")
    if spec is None or spec.origin is None:
        raise SystemExit("zig was not found: pip install ziglang==0.17.1")
    files = {name: Path("/usr/share/doc", pkg, "copyright") for name, pkg in DEBIAN.items()}
    library = Path(spec.origin).with_name("lib")
    files |= {name: library / folder / "LICENSE.TXT" for name, folder in OF_ZIG.items()}
    return {name: file.read_text(encoding="utf-8") for name, file in files.items()}


if __name__ == "__main__":
    head = "The kernel library of moh-deploy's wheels holds code of these projects."
    parts = [f"{'=' * 80}\n{name}\n{'=' * 80}\n\n{text.strip()}" for name, text in texts().items()]
    OUTPUT.write_text("\n\n".join([head, *parts]) + "\n", encoding="utf-8")
