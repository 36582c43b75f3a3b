"""Add to an SBOM what cyclonedx-py cannot read: the version, and the code in the kernel library.

python tools/complete_sbom.py dist/moh-deploy.cdx.json      after `cyclonedx-py requirements`

The library is compiled with headers of ONNX Runtime and Highway, and with zig's C++ libraries
(THIRD_PARTY_LICENSES). Run it where the wheels are built: dpkg tells versions of the headers.
"""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LLVM = "Apache-2.0 WITH LLVM-exception"
OF_DEBIAN = {"libonnxruntime-dev": "MIT", "libhwy-dev": "Apache-2.0 OR BSD-3-Clause"}
OF_ZIG = {"libc++": LLVM, "libc++abi": LLVM, "libunwind": LLVM}


def complete(sbom: dict[str, Any], headers: dict[str, str]) -> None:
    """Add version, direct dependencies and compiled code to the parsed SBOM, in place.

    Args:
        sbom: The document of `cyclonedx-py requirements`.
        headers: Versions of Debian's packages of headers; missing ones stay out.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = re.search(r'^__version__ = "(.+)"', (ROOT / "moh_deploy/__init__.py").read_text(), re.M)
    root = sbom["metadata"]["component"]
    root["version"] = found[1]
    root["purl"] = f"pkg:pypi/{project['name']}@{found[1]}"
    direct = {canonicalize_name(Requirement(line).name) for line in project["dependencies"]}
    refs = [part["bom-ref"] for part in sbom["components"] if part["name"] in direct]
    compiled = [_of_debian(name, headers.get(name)) for name in OF_DEBIAN]
    compiled += [_of_zig(name, _zig_version()) for name in OF_ZIG]
    sbom["components"] += compiled
    sbom["dependencies"] += [{"ref": part["bom-ref"]} for part in compiled]
    refs += [part["bom-ref"] for part in compiled]
    others = [entry for entry in sbom["dependencies"] if entry["ref"] != root["bom-ref"]]
    sbom["dependencies"] = [*others, {"ref": root["bom-ref"], "dependsOn": sorted(refs)}]


def _of_debian(name: str, version: str | None) -> dict[str, Any]:
    part = _part(name, OF_DEBIAN[name], "Headers that the kernel library is compiled with.")
    if version:
        part |= {"version": version, "purl": f"pkg:deb/debian/{name}@{version.replace('+', '%2B')}"}
    return part


def _of_zig(name: str, version: str) -> dict[str, Any]:
    about = f"Linked into the kernel library, from ziglang {version}."
    return _part(name, OF_ZIG[name], about)


def _part(name: str, expression: str, description: str) -> dict[str, Any]:
    return {
        "bom-ref": f"compiled-{name}",
        "type": "library",
        "name": name,
        "description": description,
        "licenses": [{"expression": expression}],
    }


def _zig_version() -> str:
    found = re.search(r'"ziglang==([\d.]+)"', (ROOT / "tools/build_backend.py").read_text())
    return found[1]


def versions_of_headers() -> dict[str, str]:
    """Return the versions of Debian's packages that are installed here."""
    command = ["dpkg-query", "-W", "-f", "${Package} ${Version}\n", *OF_DEBIAN]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:
        return {}
    return dict(line.split() for line in said.splitlines() if " " in line.strip())


def main(path: Path) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    sbom = json.loads(path.read_text(encoding="utf-8"))
    complete(sbom, versions_of_headers())
    text = json.dumps(sbom, indent=2, sort_keys=True) + "\n"
    wrong = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if wrong:
        sys.exit(f"{path} is no valid CycloneDX 1.6: {wrong.data}")
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
